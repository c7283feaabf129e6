// The ops that go row by row: embeddings, LayerNorm with dropout and residual, bias and GELU. Arithmetic is float32, activations are float32 or bfloat16.
// Sums over rows are taken in blocks of BLOCK rows, and the blocks' sums in order: results do not depend on the number of threads.
#include "vectors.h"

static const long BLOCK = 32;

static inline long blocks_of(long rows) { return (rows + BLOCK - 1) / BLOCK; }

// sums[s][columns] = over the blocks, partial[block][s][columns]
static void add_blocks(const float* partial, float* sums, long blocks, long width) {
    for (long j = 0; j < width; j += LANES) {
        long n = least(LANES, width - j);
        vec total = {};
        for (long block = 0; block < blocks; block++) total += load(partial + block * width + j, n);
        store(sums + j, total, n);
    }
}

// z, of `columns` floats in memory, normalised: y = (z - mean) * rstd * weight + bias, times `keep` * scale where there is dropout behind the norm.
template <class T>
static void normalise(const float* z, const float* weight, const float* bias, float eps, long columns, const uint8_t* keep, float scale, T* y,
                      float* mean_out, float* rstd_out) {
    vec total = {}, squares = {};
    for (long j = 0; j < columns; j += LANES) total += load(z + j, least(LANES, columns - j));
    float mean = sum_of(total) / columns;
    long whole = columns / LANES * LANES;
    for (long j = 0; j < whole; j += LANES) {
        vec d = load(z + j) - mean;
        squares += d * d;
    }
    float square = sum_of(squares);
    for (long j = whole; j < columns; j++) square += (z[j] - mean) * (z[j] - mean);
    float rstd = 1.0f / sqrtf(square / columns + eps);
    *mean_out = mean;
    *rstd_out = rstd;
    for (long j = 0; j < columns; j += LANES) {
        long n = least(LANES, columns - j);
        vec out = (load(z + j, n) - mean) * rstd * load(weight + j, n) + load(bias + j, n);
        if (keep) out = out * (load_mask(keep + j, n) * scale);
        store(y + j, out, n);
    }
}

// From dy of a row to dz, with `normal` = (z - mean) * rstd in `dz` beforehand; adds to the block's sums of dy * normal and dy.
static void normalise_backward(float* dz, const float* dy, const float* weight, float rstd, long columns, float* dweight, float* dbias) {
    vec with_normal = {}, alone = {};
    for (long j = 0; j < columns; j += LANES) {
        long n = least(LANES, columns - j);
        vec g = load(dy + j, n), normal = load(dz + j, n), scaled = g * load(weight + j, n);
        with_normal += scaled * normal;
        alone += scaled;
        store(dweight + j, load(dweight + j, n) + g * normal, n);
        store(dbias + j, load(dbias + j, n) + g, n);
    }
    float a = sum_of(with_normal) / columns, b = sum_of(alone) / columns;
    for (long j = 0; j < columns; j += LANES) {
        long n = least(LANES, columns - j);
        vec normal = load(dz + j, n);
        store(dz + j, (load(dy + j, n) * load(weight + j, n) - b - normal * a) * rstd, n);
    }
}

template <class T>
static void norm_forward(const T* x, const float* x_bias, const T* residual, const float* weight, const float* bias, const uint8_t* keep,
                         float scale, float eps, long rows, long columns, T* y, T* z, float* mean, float* rstd, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++) {
        float* sum = scratch(columns);
        for (long j = 0; j < columns; j += LANES) {
            long n = least(LANES, columns - j), at = row * columns + j;
            vec added = load(x + at, n) + load(x_bias + j, n);
            if (keep) added = added * (load_mask(keep + at, n) * scale);
            vec stored = as_stored(added + load(residual + at, n), z);
            store(z + at, stored, n);
            store(sum + j, stored, n);
        }
        normalise(sum, weight, bias, eps, columns, (const uint8_t*)nullptr, 1.0f, y + row * columns, mean + row, rstd + row);
    }
}

// dx is written where there is dropout; without, it is dz. sums: [3, D] of dx_bias, dweight, dbias. partial: [blocks, 3, D].
template <class T>
static void norm_backward(const T* dy, const T* z, const float* weight, const float* mean, const float* rstd, const uint8_t* keep, float scale,
                          long rows, long columns, T* dz, T* dx, float* partial, float* sums, int threads) {
    long blocks = blocks_of(rows);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < blocks; block++) {
        float *slope = scratch(2 * rounded_up(columns)), *grad = slope + rounded_up(columns);
        float *dx_bias = partial + block * 3 * columns, *dweight = dx_bias + columns, *dbias = dweight + columns;
        memset(dx_bias, 0, 3 * columns * sizeof(float));
        for (long row = block * BLOCK; row < least(rows, (block + 1) * BLOCK); row++) {
            for (long j = 0; j < columns; j += LANES) {
                long n = least(LANES, columns - j), at = row * columns + j;
                store(slope + j, (load(z + at, n) - mean[row]) * rstd[row], n);
                store(grad + j, load(dy + at, n), n);
            }
            normalise_backward(slope, grad, weight, rstd[row], columns, dweight, dbias);
            for (long j = 0; j < columns; j += LANES) {
                long n = least(LANES, columns - j), at = row * columns + j;
                vec d = load(slope + j, n);
                store(dz + at, d, n);
                if (keep) {
                    d = d * (load_mask(keep + at, n) * scale);
                    store(dx + at, d, n);
                }
                store(dx_bias + j, load(dx_bias + j, n) + d, n);
            }
        }
    }
    add_blocks(partial, sums, blocks, 3 * columns);
}

// The sum of a token's three rows, float32 in `sum`.
static void embedded(const int* const* ids, const float* const* tables, long token, long columns, float* sum) {
    for (long j = 0; j < columns; j += LANES) {
        long n = least(LANES, columns - j);
        vec total = {};
        for (int t = 0; t < 3; t++) total += load(tables[t] + ids[t][token] * columns + j, n);
        store(sum + j, total, n);
    }
}

// The number of the first token with an id outside its table, or -1.
static long first_outside(const int* const* ids, const long* sizes, long rows) {
    for (long token = 0; token < rows; token++)
        for (int t = 0; t < 3; t++)
            if (ids[t][token] < 0 || ids[t][token] >= sizes[t]) return token;
    return -1;
}

template <class T>
static long embedding_forward(const int* const* ids, const float* const* tables, const long* sizes, const float* weight, const float* bias,
                              const uint8_t* keep, float scale, float eps, long rows, long columns, T* y, float* mean, float* rstd, int threads) {
    long outside = first_outside(ids, sizes, rows);
    if (outside >= 0) return outside;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++) {
        float* sum = scratch(columns);
        embedded(ids, tables, row, columns, sum);
        normalise(sum, weight, bias, eps, columns, keep ? keep + row * columns : nullptr, scale, y + row * columns, mean + row, rstd + row);
    }
    return -1;
}

// de: [T, D] float32, the gradient of the sum of the three rows. sums: [2, D] of dweight, dbias. partial: [blocks, 2, D].
template <class T>
static void embedding_backward(const T* dy, const int* const* ids, const float* const* tables, const float* weight, const float* mean,
                               const float* rstd, const uint8_t* keep, float scale, long rows, long columns, float* de, float* partial, float* sums,
                               int threads) {
    long blocks = blocks_of(rows);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < blocks; block++) {
        float* grad = scratch(columns);
        float *dweight = partial + block * 2 * columns, *dbias = dweight + columns;
        memset(dweight, 0, 2 * columns * sizeof(float));
        for (long row = block * BLOCK; row < least(rows, (block + 1) * BLOCK); row++) {
            float* slope = de + row * columns;
            embedded(ids, tables, row, columns, slope);
            for (long j = 0; j < columns; j += LANES) {
                long n = least(LANES, columns - j), at = row * columns + j;
                vec g = load(dy + at, n);
                if (keep) g = g * (load_mask(keep + at, n) * scale);
                store(slope + j, (load(slope + j, n) - mean[row]) * rstd[row], n);
                store(grad + j, g, n);
            }
            normalise_backward(slope, grad, weight, rstd[row], columns, dweight, dbias);
        }
    }
    add_blocks(partial, sums, blocks, 2 * columns);
}

// gelu(u) and its slope; with a = |u|, Phi(-a) = exp(-a^2 / 2) P(1 / (1 + 0.2316419 a)), P a least-squares fit within 1.3e-7 of itself up to a = 14.
static inline vec below(vec a, vec density) {
    vec t = 1.0f / (1.0f + 0.2316419f * a);
    vec series = t * -7.042708660e-02f + 2.476997662e-01f;
    series = series * t - 2.016845224e-01f;
    series = series * t + 2.252771969e-01f;
    series = series * t + 1.353820485e-02f;
    series = series * t + 1.026549056e-01f;
    series = series * t + 9.041929416e-02f;
    series = series * t + 9.252230634e-02f;
    return series * t * density;
}
static inline vec magnitude(vec u) {
    vec a = (vec)((ivec)u & 0x7fffffff);
    return a > 14.0f ? (vec){} + 14.0f : a;  // beyond, Phi(-a) is 0 to float32, and an infinite u makes no NaN
}
static inline vec sigmoid_twice(vec u, vec& slope) {  // sigmoid(2 v) and 2 dv/du of the tanh form
    vec square = u * u;
    slope = 1.5957691216057308f + 0.21406444881780075f * square;
    vec twice = -u * (1.5957691216057308f + 0.07135481627260025f * square);
    vec s = 1.0f / (1.0f + exp_of(twice));
    return twice > 88.0f ? (vec){} : s;
}
template <bool TANH>
static inline vec gelu_of(vec u) {
    if (TANH) {
        vec slope;
        return u * sigmoid_twice(u, slope);
    }
    vec a = magnitude(u);
    vec positive = u < 0.0f ? (vec){} : u;
    return positive - a * below(a, exp_of(-0.5f * a * a));
}
template <bool TANH>
static inline vec gelu_slope(vec u) {
    if (TANH) {
        vec slope, s = sigmoid_twice(u, slope);
        vec bend = s * (1.0f - s) * u * slope;
        return s + bend;
    }
    vec a = magnitude(u), density = exp_of(-0.5f * a * a);
    vec down = below(a, density) - a * 0.3989422804014327f * density;  // the slope at -a; that at a is 1 less it
    return u < 0.0f ? down : 1.0f - down;
}

template <class T, bool TANH>
static void gelu_forward(const T* x, const float* bias, long rows, long columns, T* y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++)
        for (long j = 0; j < columns; j += LANES) {
            long n = least(LANES, columns - j), at = row * columns + j;
            store(y + at, gelu_of<TANH>(load(x + at, n) + load(bias + j, n)), n);
        }
}

template <class T, bool TANH>
static void gelu_backward(const T* dy, const T* x, const float* bias, long rows, long columns, T* dx, float* partial, float* dbias, int threads) {
    long blocks = blocks_of(rows);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < blocks; block++) {
        float* sums = partial + block * columns;
        memset(sums, 0, columns * sizeof(float));
        for (long row = block * BLOCK; row < least(rows, (block + 1) * BLOCK); row++)
            for (long j = 0; j < columns; j += LANES) {
                long n = least(LANES, columns - j), at = row * columns + j;
                vec d = load(dy + at, n) * gelu_slope<TANH>(load(x + at, n) + load(bias + j, n));
                store(dx + at, d, n);
                store(sums + j, load(sums + j, n) + d, n);
            }
    }
    add_blocks(partial, dbias, blocks, columns);
}

// table[slots[t]] += rows[t]; each thread takes some of the columns, and all rows in their order.
static void add_rows(const float* rows, const int* slots, long count, long columns, float* table, int threads) {
    long pieces = (columns + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long piece = 0; piece < pieces; piece++) {
        long j = piece * LANES, n = least(LANES, columns - j);
        for (long row = 0; row < count; row++) {
            float* to = table + slots[row] * columns + j;
            store(to, load(to, n) + load(rows + row * columns + j, n), n);
        }
    }
}

extern "C" {
void bertfast_norm_forward(int half, const void* x, const float* x_bias, const void* residual, const float* weight, const float* bias,
                           const uint8_t* keep, float scale, float eps, long rows, long columns, void* y, void* z, float* mean, float* rstd,
                           int threads) {
    OF_DTYPE(half, norm_forward((const T*)x, x_bias, (const T*)residual, weight, bias, keep, scale, eps, rows, columns, (T*)y, (T*)z, mean, rstd,
                                threads))
}
void bertfast_norm_backward(int half, const void* dy, const void* z, const float* weight, const float* mean, const float* rstd,
                            const uint8_t* keep, float scale, long rows, long columns, void* dz, void* dx, float* partial, float* sums,
                            int threads) {
    OF_DTYPE(half, norm_backward((const T*)dy, (const T*)z, weight, mean, rstd, keep, scale, rows, columns, (T*)dz, (T*)dx, partial, sums, threads))
}
long bertfast_embedding_forward(int half, const int* const* ids, const float* const* tables, const long* sizes, const float* weight,
                                const float* bias, const uint8_t* keep, float scale, float eps, long rows, long columns, void* y, float* mean,
                                float* rstd, int threads) {
    OF_DTYPE(half, return embedding_forward(ids, tables, sizes, weight, bias, keep, scale, eps, rows, columns, (T*)y, mean, rstd, threads))
}
void bertfast_embedding_backward(int half, const void* dy, const int* const* ids, const float* const* tables, const float* weight,
                                 const float* mean, const float* rstd, const uint8_t* keep, float scale, long rows, long columns, float* de,
                                 float* partial, float* sums, int threads) {
    OF_DTYPE(half, embedding_backward((const T*)dy, ids, tables, weight, mean, rstd, keep, scale, rows, columns, de, partial, sums, threads))
}
void bertfast_add_rows(const float* rows, const int* slots, long count, long columns, float* table, int threads) {
    add_rows(rows, slots, count, columns, table, threads);
}
void bertfast_gelu_forward(int half, int tanh, const void* x, const float* bias, long rows, long columns, void* y, int threads) {
    OF_DTYPE(half, if (tanh) gelu_forward<T, true>((const T*)x, bias, rows, columns, (T*)y, threads);
             else gelu_forward<T, false>((const T*)x, bias, rows, columns, (T*)y, threads))
}
void bertfast_gelu_backward(int half, int tanh, const void* dy, const void* x, const float* bias, long rows, long columns, void* dx,
                            float* partial, float* dbias, int threads) {
    OF_DTYPE(half, if (tanh) gelu_backward<T, true>((const T*)dy, (const T*)x, bias, rows, columns, (T*)dx, partial, dbias, threads);
             else gelu_backward<T, false>((const T*)dy, (const T*)x, bias, rows, columns, (T*)dx, partial, dbias, threads))
}
long bertfast_block() { return BLOCK; }
}
