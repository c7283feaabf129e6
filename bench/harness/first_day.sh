#!/bin/bash
# The first minutes on a GPU: is all of it right, and how fast is it? Each step ends by itself and can be called alone.
#
#   bash bench/harness/first_day.sh FOLDER [STEP...]     # rows and logs go to FOLDER; steps: check sanitize tests kernels sweep step busy losses epochs
#   memory. Of a step beside its peers the slowest part is that six processes start one after the other and one compiles: some three minutes.
#
# On a machine without .git, BERTFAST_COMMIT names the commit. `make gpu-kit` packs the wheels that such a machine lacks.
set -u
out=$1; shift
steps=${*:-check sanitize tests kernels step busy losses}
export PYTHONUNBUFFERED=1 BERTFAST_COMMIT=${BERTFAST_COMMIT:-}
[ -n "$BERTFAST_COMMIT" ] || unset BERTFAST_COMMIT
python=${PYTHON:-python3}
failed=

# run NAME SECONDS COMMAND...: its output goes to a log, the end of it to the screen. At its limit it is interrupted as by Ctrl-C, at which pytest still tells what failed.
run() {
    local name=$1 seconds=$2 began=$SECONDS; shift 2
    timeout --signal=INT --kill-after=20 "$seconds" "$@" >"$out/$name.log" 2>&1
    local code=$?
    echo "== $name: exit code $code after $((SECONDS - began)) s"; tail -n "${LINES_SHOWN:-25}" "$out/$name.log"
    [ $code -eq 0 ] || failed="$failed $name"
}

for step in $steps; do
    case $step in
    check) run check 60 $python -c 'import torch, triton, deepspeed, bertfast_kernels; print(torch.__version__, triton.__version__, torch.cuda.get_device_name())' ;;
    sanitize)  # memcheck alone: racecheck stops at the first attention kernel with an error of its own (compute-sanitizer of CUDA 13.0)
        run sanitize 240 compute-sanitizer --tool memcheck --error-exitcode 3 $python -m tests.support.one_of_each ;;
    tests) run tests 240 $python -m pytest -q --tb=short -p no:cacheprovider -n "${WORKERS:-14}" --dist load --maxfail=40 tests/kernels tests/model/test_triton.py \
        -m triton --ignore=tests/kernels/test_compile.py --ignore-glob='*/test_mutations.py' ;;
    kernels) run kernels 300 $python -m bench.bench_kernels --output "$out/kernels.jsonl" ;;
    sweep) run sweep 200 $python -m bench.sweep --output "$out/sweep.jsonl" --table "$out/launches.json" ;;
    step) for precision in ${PRECISIONS:-bf16 fp16}; do
        run "step-$precision" 240 $python -m bench.bench_gpu_step --parts step --lengths mnli --batches 32 --precisions $precision \
            --output "$out/step.jsonl"; done ;;
    busy) run busy 120 $python -m bench.bench_gpu_step --parts busy --batches 32 --output "$out/step.jsonl" ;;
    losses) run losses 180 $python -m bench.bench_gpu_step --parts losses --batches 32 --output "$out/step.jsonl" ;;
    epochs) run epochs 300 $python -m bench.bench_gpu_step --parts epochs --output "$out/step.jsonl" ;;
    memory) run memory 300 $python -m bench.bench_gpu_step --parts memory --models base --output "$out/step.jsonl" ;;
    *) echo "no step $step" >&2; failed="$failed $step" ;;
    esac
done
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
