// What products of bfloat16 matrices need beside them.
#include "vectors.h"

static const int SIDE = 16;

// For a step s of the exchange below: elements k of two rows, the first's or 16 + the second's.
static constexpr hvec pick(int s, bool second) {
    hvec from = {};
    for (int k = 0; k < SIDE; k++) from[k] = (uint16_t)(second ? (k & s ? SIDE + k : k + s) : (k & s ? SIDE + k - s : k));
    return from;
}

// 16 rows of 16 become columns, by exchanges of blocks of 1, 2, 4 and 8 (Eklundh 1972).
template <int S>
static inline void exchange(hvec* row) {
    for (int i = 0; i < SIDE; i++) {
        if (i & S) continue;
        hvec a = row[i], b = row[i + S];
        row[i] = __builtin_shuffle(a, b, pick(S, false));
        row[i + S] = __builtin_shuffle(a, b, pick(S, true));
    }
}

// to [columns, rows] = from [rows, columns], of 16 bits each
static void transpose(const uint16_t* from, long rows, long columns, uint16_t* to, int threads) {
    long across = (columns + SIDE - 1) / SIDE;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long piece = 0; piece < across; piece++) {
        long j = piece * SIDE, n = least(SIDE, columns - j);
        for (long i = 0; i < rows; i += SIDE) {
            long m = least(SIDE, rows - i);
            hvec block[SIDE];
            for (int r = 0; r < SIDE; r++) {
                block[r] = (hvec){};
                if (r < m) memcpy(&block[r], from + (i + r) * columns + j, n == SIDE ? sizeof(hvec) : n * sizeof(uint16_t));
            }
            exchange<1>(block);
            exchange<2>(block);
            exchange<4>(block);
            exchange<8>(block);
            for (int r = 0; r < n; r++) memcpy(to + (j + r) * rows + i, &block[r], m == SIDE ? sizeof(hvec) : m * sizeof(uint16_t));
        }
    }
}

extern "C" {
void bertfast_transpose(const uint16_t* from, long rows, long columns, uint16_t* to, int threads) {
    transpose(from, rows, columns, to, threads);
}
}
