// The norm of all gradients, and AdamW (Loshchilov and Hutter 2019) with the gradients' clipping, a pass over all parameters each.
#include "vectors.h"

static const long CHUNK = 16384;  // elements: 64 KiB of each array

// A parameter of `rows` rows and `columns` columns. Its gradient is dense (slots is null), or holds the rows r with slots[r] >= 0 alone, at that row.
// moved[r], with slots: whether a moment of the row can be other than 0; it is kept up to date.
struct Parameter {
    float* value;
    const float* grad;
    float* mean;
    float* square;
    bf16* half;  // a copy of the new values, or null
    const int* slots;
    uint8_t* moved;
    long rows, columns;
    float rate, decay, correction1, correction2;
};

struct Piece {
    const Parameter* parameter;
    long first, count;  // elements, or rows where it has slots
};

static long cut(const Parameter* parameters, long n, Piece* pieces) {
    long number = 0;
    for (long i = 0; i < n; i++) {
        const Parameter& p = parameters[i];
        long all = p.slots ? p.rows : p.rows * p.columns;
        long step = p.slots ? (CHUNK + p.columns - 1) / p.columns : CHUNK;
        for (long first = 0; first < all; first += step) {
            if (pieces) pieces[number] = {&p, first, least(step, all - first)};
            number++;
        }
    }
    return number;
}

// rest1, rest2: 1 - beta1 and 1 - beta2, taken in double: in float32 1 - 0.999 is off by 5e-5 of itself.
struct Rule {
    float rest1, beta2, rest2, eps, clip;
};

// `grad` is null where the gradient is 0.
static void update(const Parameter& p, const Rule& rule, long at, const float* grad, long count) {
    float size = p.rate / p.correction1, root = 1.0f / sqrtf(p.correction2), shrink = 1.0f - p.rate * p.decay;
    for (long j = 0; j < count; j += LANES) {
        long n = least(LANES, count - j);
        vec g = grad ? load(grad + j, n) * rule.clip : (vec){}, w = load(p.value + at + j, n) * shrink;
        vec m = load(p.mean + at + j, n), s = load(p.square + at + j, n);
        m += rule.rest1 * (g - m);
        s = rule.beta2 * s + rule.rest2 * g * g;
        vec square_root;
        for (int i = 0; i < LANES; i++) square_root[i] = __builtin_sqrtf(s[i]);
        w -= size * m / (square_root * root + rule.eps);
        store(p.mean + at + j, m, n);
        store(p.square + at + j, s, n);
        store(p.value + at + j, w, n);
        if (p.half) store(p.half + at + j, w, n);
    }
}

// A row whose moments and gradient are all 0: only the decay moves it.
static void shrink(const Parameter& p, long at, long count) {
    if (p.decay == 0.0f) return;
    float factor = 1.0f - p.rate * p.decay;
    for (long j = 0; j < count; j += LANES) {
        long n = least(LANES, count - j);
        store(p.value + at + j, load(p.value + at + j, n) * factor, n);
    }
}

static double squares(const float* from, long count) {
    vec total = {};
    for (long j = 0; j < count; j += LANES) {
        vec x = load(from + j, least(LANES, count - j));
        total += x * x;
    }
    double sum = 0;
    for (int i = 0; i < LANES; i++) sum += total[i];
    return sum;
}

extern "C" {
// The sum of squares of arrays of floats; the same for any number of threads.
double bertfast_squares(const float* const* arrays, const long* counts, long n, int threads) {
    long pieces = 0;
    for (long i = 0; i < n; i++) pieces += (counts[i] + CHUNK - 1) / CHUNK;
    struct Part {
        const float* from;
        long count;
    };
    Part* parts = (Part*)malloc((pieces + 1) * sizeof(Part));
    double* sums = (double*)malloc((pieces + 1) * sizeof(double));
    long number = 0;
    for (long i = 0; i < n; i++)
        for (long first = 0; first < counts[i]; first += CHUNK) parts[number++] = {arrays[i] + first, least(CHUNK, counts[i] - first)};
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (long i = 0; i < pieces; i++) sums[i] = squares(parts[i].from, parts[i].count);
    double total = 0;
    for (long i = 0; i < pieces; i++) total += sums[i];
    free(parts);
    free(sums);
    return total;
}

void bertfast_adamw(const Parameter* parameters, long n, double beta1, double beta2, float eps, float clip, int threads) {
    Rule rule = {(float)(1 - beta1), (float)beta2, (float)(1 - beta2), eps, clip};
    long number = cut(parameters, n, nullptr);
    Piece* pieces = (Piece*)malloc((number + 1) * sizeof(Piece));
    cut(parameters, n, pieces);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (long i = 0; i < number; i++) {
        const Parameter& p = *pieces[i].parameter;
        long first = pieces[i].first, count = pieces[i].count;
        if (!p.slots) {
            update(p, rule, first, p.grad + first, count);
            continue;
        }
        for (long row = first; row < first + count; row++) {
            int slot = p.slots[row];
            if (slot < 0 && !p.moved[row]) {
                shrink(p, row * p.columns, p.columns);
                continue;
            }
            update(p, rule, row * p.columns, slot < 0 ? nullptr : p.grad + slot * p.columns, p.columns);
            p.moved[row] = 1;
        }
    }
    free(pieces);
}

// moved[r] = whether a moment of row r is other than 0
void bertfast_moved(const float* mean, const float* square, long rows, long columns, uint8_t* moved, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++) {
        moved[row] = 0;
        for (long j = row * columns; j < (row + 1) * columns && !moved[row]; j++) moved[row] = mean[j] != 0 || square[j] != 0;
    }
}
}
