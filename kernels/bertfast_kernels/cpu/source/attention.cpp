// Softmax attention over packed sequences, a sequence and a head at a time, and QUERIES queries at a time. Arithmetic is float32.
#include "vectors.h"

static const long QUERIES = 64;
#ifdef __AVX512F__
static const int ROWS = 8;  // of a tile of a product, by two vectors of columns: 16 registers of 32
#else
static const int ROWS = 4;
#endif

template <int R, int V>
static inline void tile(const float* a, long a_row, long a_k, const float* b, long ldb, float* c, long ldc, long depth, bool adds) {
    vec sum[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sum[r][v] = adds ? load(c + r * ldc + v * LANES) : (vec){};
    for (long k = 0; k < depth; k++) {
        vec right[V];
        for (int v = 0; v < V; v++) right[v] = load(b + k * ldb + v * LANES);
        for (int r = 0; r < R; r++) {
            float left = a[r * a_row + k * a_k];
            for (int v = 0; v < V; v++) sum[r][v] += left * right[v];
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(c + r * ldc + v * LANES, sum[r][v]);
}

template <int R, int V>
struct Rows {
    static inline void few(long rows, const float* a, long a_row, long a_k, const float* b, long ldb, float* c, long ldc, long depth, bool adds) {
        if (rows == R) tile<R, V>(a, a_row, a_k, b, ldb, c, ldc, depth, adds);
        else Rows<R - 1, V>::few(rows, a, a_row, a_k, b, ldb, c, ldc, depth, adds);
    }
};
template <int V>
struct Rows<0, V> {
    static inline void few(long, const float*, long, long, const float*, long, float*, long, long, bool) {}
};

// C [rows, columns] (+)= A B, with A[i, k] at a[i * a_row + k * a_k] and columns a multiple of 16.
static void product(const float* a, long a_row, long a_k, const float* b, long ldb, float* c, long ldc, long rows, long columns, long depth,
                    bool adds) {
    for (long j = 0; j < columns; j += 2 * LANES) {
        bool two = columns - j >= 2 * LANES;
        for (long i = 0; i < rows; i += ROWS) {
            long count = least(ROWS, rows - i);
            if (two) Rows<ROWS, 2>::few(count, a + i * a_row, a_row, a_k, b + j, ldb, c + i * ldc + j, ldc, depth, adds);
            else Rows<ROWS, 1>::few(count, a + i * a_row, a_row, a_k, b + j, ldb, c + i * ldc + j, ldc, depth, adds);
        }
    }
}

// rows of `size` elements, `stride` apart, as float32 rows of `width` with zeros behind
template <class T>
static void take(const T* from, long stride, long rows, long size, float* to, long width) {
    for (long row = 0; row < rows; row++)
        for (long j = 0; j < width; j += LANES) {
            long n = least(LANES, size - j);
            store(to + row * width + j, n > 0 ? load(from + row * stride + j, n) : (vec){});
        }
}
// the same, transposed: [size, width], zeros beyond the rows
template <class T>
static void take_columns(const T* from, long stride, long rows, long size, float* to, long width) {
    for (long j = 0; j < size; j += LANES) {
        long n = least(LANES, size - j);
        for (long row = 0; row < rows; row++) {
            vec x = load(from + row * stride + j, n);
            for (long i = 0; i < n; i++) to[(j + i) * width + row] = x[i];
        }
        for (long i = 0; i < n; i++)
            for (long row = rows; row < width; row++) to[(j + i) * width + row] = 0;
    }
}
template <class T>
static void give(const float* from, long width, long rows, long size, float factor, T* to, long stride) {
    for (long row = 0; row < rows; row++)
        for (long j = 0; j < size; j += LANES) store(to + row * stride + j, load(from + row * width + j) * factor, least(LANES, size - j));
}

// Scores [rows, width] become probabilities, with zeros beyond `keys`.
static void softmax(float* scores, long rows, long keys, long width, float factor) {
    for (long row = 0; row < rows; row++) {
        float* at = scores + row * width;
        vec top = load(at, keys);
        if (keys < LANES)
            for (long i = keys; i < LANES; i++) top[i] = at[0];
        for (long j = LANES; j < keys; j += LANES) {
            vec x = load(at + j, keys - j);
            if (keys - j < LANES)
                for (long i = keys - j; i < LANES; i++) x[i] = at[0];
            top = larger(x, top);
        }
        float highest = largest_of(top) * factor;
        vec total = {};
        for (long j = 0; j < width; j += LANES) {
            vec e = exp_of(load(at + j) * factor - highest);
            if (keys - j < LANES)
                for (long i = keys - j > 0 ? keys - j : 0; i < LANES; i++) e[i] = 0;
            total += e;
            store(at + j, e);
        }
        float inverse = 1.0f / sum_of(total);
        for (long j = 0; j < width; j += LANES) store(at + j, load(at + j) * inverse);
    }
}

// What is dropped of probabilities [rows, width], by a mask of [rows, keys].
static void drop(const float* from, float* to, const uint8_t* keep, long rows, long keys, long width) {
    for (long row = 0; row < rows; row++)
        for (long j = 0; j < width; j += LANES) {
            long n = least(LANES, keys - j);
            vec x = load(from + row * width + j);
            store(to + row * width + j, n > 0 ? x * load_mask(keep + row * keys + j, n) : (vec){});
        }
}

// One batch: where its rows lie. q of sequence b and head n begins at q + (first query * q_row + n * size), a row q_row elements on; keys and values alike.
// With `one`, a sequence has one query, in row b of q. offsets: int64 [B], where each sequence's mask [N, queries, keys] begins.
struct Batch {
    const int* bounds;
    long sequences, heads, size;
    bool one;
    const uint8_t* keep;
    const long* offsets;
    float scale;
    long queries(long b) const { return one ? 1 : keys(b); }
    long keys(long b) const { return bounds[b + 1] - bounds[b]; }
    long first(long b) const { return one ? b : bounds[b]; }
    const uint8_t* mask(long b, long n, long query) const {
        return keep ? keep + offsets[b] + (n * queries(b) + query) * keys(b) : nullptr;
    }
};

template <class T>
static void forward(const Batch& batch, const T* q, long q_row, const T* k, const T* v, long kv_row, T* out, long out_row, int threads) {
    long size = batch.size, wide = rounded_up(size);
    float factor = 1.0f / sqrtf((float)size);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (long task = 0; task < batch.sequences * batch.heads; task++) {
        long b = task / batch.heads, n = task % batch.heads, keys = batch.keys(b), queries = batch.queries(b), width = rounded_up(keys);
        T* to = out + batch.first(b) * out_row + n * size;
        if (keys == 0) {
            if (batch.one) memset((void*)to, 0, size * sizeof(T));
            continue;
        }
        long block = least(QUERIES, queries);
        float* k_columns = scratch(size * width + keys * wide + block * (2 * wide + width));
        float *v_rows = k_columns + size * width, *q_rows = v_rows + keys * wide, *out_rows = q_rows + block * wide, *probs = out_rows + block * wide;
        const long key = (long)batch.bounds[b] * kv_row + n * size;
        take_columns(k + key, kv_row, keys, size, k_columns, width);
        take(v + key, kv_row, keys, size, v_rows, wide);
        for (long first = 0; first < queries; first += block) {
            long count = least(block, queries - first);
            take(q + (batch.first(b) + first) * q_row + n * size, q_row, count, size, q_rows, wide);
            product(q_rows, wide, 1, k_columns, width, probs, width, count, width, size, false);
            softmax(probs, count, keys, width, factor);
            if (batch.keep) drop(probs, probs, batch.mask(b, n, first), count, keys, width);
            product(probs, width, 1, v_rows, wide, out_rows, wide, count, wide, keys, false);
            give(out_rows, wide, count, size, batch.scale, to + first * out_row, out_row);
        }
    }
}

template <class T>
static void backward(const Batch& batch, const T* dout, long out_row, const T* q, T* dq, long q_row, const T* k, const T* v, T* dk, T* dv, long kv_row,
                     int threads) {
    long size = batch.size, wide = rounded_up(size);
    float factor = 1.0f / sqrtf((float)size);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (long task = 0; task < batch.sequences * batch.heads; task++) {
        long b = task / batch.heads, n = task % batch.heads, keys = batch.keys(b), queries = batch.queries(b), width = rounded_up(keys);
        if (keys == 0) {
            if (batch.one) memset((void*)(dq + b * q_row + n * size), 0, size * sizeof(T));
            continue;
        }
        long block = least(QUERIES, queries);
        float* k_columns = scratch(2 * size * width + 3 * keys * wide + block * (3 * wide + 3 * width));
        float *v_columns = k_columns + size * width, *k_rows = v_columns + size * width, *dk_rows = k_rows + keys * wide;
        float *dv_rows = dk_rows + keys * wide, *q_rows = dv_rows + keys * wide, *dq_rows = q_rows + block * wide, *dout_rows = dq_rows + block * wide;
        float *probs = dout_rows + block * wide, *kept = probs + block * width, *dprobs = kept + block * width;
        const long key = (long)batch.bounds[b] * kv_row + n * size;
        take_columns(k + key, kv_row, keys, size, k_columns, width);
        take_columns(v + key, kv_row, keys, size, v_columns, width);
        take(k + key, kv_row, keys, size, k_rows, wide);
        for (long first = 0; first < queries; first += block) {
            long count = least(block, queries - first), query = batch.first(b) + first;
            take(q + query * q_row + n * size, q_row, count, size, q_rows, wide);
            take(dout + query * out_row + n * size, out_row, count, size, dout_rows, wide);
            product(q_rows, wide, 1, k_columns, width, probs, width, count, width, size, false);
            softmax(probs, count, keys, width, factor);
            const uint8_t* mask = batch.mask(b, n, first);
            if (mask) drop(probs, kept, mask, count, keys, width);
            product(mask ? kept : probs, 1, width, dout_rows, wide, dv_rows, wide, keys, wide, count, first > 0);
            product(dout_rows, wide, 1, v_columns, width, dprobs, width, count, width, size, false);
            if (mask) drop(dprobs, dprobs, mask, count, keys, width);
            for (long row = 0; row < count; row++) {
                float *p = probs + row * width, *d = dprobs + row * width;
                vec total = {};
                for (long j = 0; j < width; j += LANES) total += load(p + j) * load(d + j);
                float delta = sum_of(total);
                for (long j = 0; j < width; j += LANES) store(d + j, load(p + j) * (load(d + j) - delta));
            }
            product(dprobs, width, 1, k_rows, wide, dq_rows, wide, count, wide, keys, false);
            product(dprobs, 1, width, q_rows, wide, dk_rows, wide, keys, wide, count, first > 0);
            give(dq_rows, wide, count, size, factor * batch.scale, dq + query * q_row + n * size, q_row);
        }
        give(dk_rows, wide, keys, size, factor * batch.scale, dk + key, kv_row);
        give(dv_rows, wide, keys, size, batch.scale, dv + key, kv_row);
    }
}

extern "C" {
void bertfast_attention_forward(int half, const int* bounds, long sequences, long heads, long size, int one, const uint8_t* keep,
                                const long* offsets, float scale, const void* q, long q_row, const void* k, const void* v, long kv_row, void* out,
                                long out_row, int threads) {
    Batch batch = {bounds, sequences, heads, size, one != 0, keep, offsets, scale};
    OF_DTYPE(half, forward(batch, (const T*)q, q_row, (const T*)k, (const T*)v, kv_row, (T*)out, out_row, threads))
}
void bertfast_attention_backward(int half, const int* bounds, long sequences, long heads, long size, int one, const uint8_t* keep,
                                 const long* offsets, float scale, const void* dout, long out_row, const void* q, void* dq, long q_row,
                                 const void* k, const void* v, void* dk, void* dv, long kv_row, int threads) {
    Batch batch = {bounds, sequences, heads, size, one != 0, keep, offsets, scale};
    OF_DTYPE(half, backward(batch, (const T*)dout, out_row, (const T*)q, (T*)dq, q_row, (const T*)k, (const T*)v, (T*)dk, (T*)dv, kv_row, threads))
}
}
