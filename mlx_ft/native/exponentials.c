/* Functions of float32 numbers that MLX's CPU build computes one by one, in vectors and threads.

   From Python MLX's graph can call no C on a CPU, except for its products (an operation of one's
   own would be C++, built against one version of MLX): `mx.addmm(c, a, b, alpha=DOOR)` copies c, or
   takes its memory where nobody else needs it, as for any product, and then comes here, where a[0]
   names the function that takes the product's place. Every number comes out the same wherever it
   lies in an array and whatever threads there are. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "native.h"

/* The lowest bits of a[0]. The others: of SOFTMAX, the rows of which the last one takes all numbers,
   each one before it one less, and what it does not take becomes 0 (0: all take all); of
   SOFTMAX_SLOPE, the numbers of a row. */
enum { SILU = 1, SILU_SLOPE = 2, SOFTMAX = 3, SOFTMAX_SLOPE = 4, KINDS = 8 };
enum { LANES = 16, SHARE = 1 << 14 };

typedef struct {
    int columns, step, causal;
    const float *b;
    float *c;
} arrays;

static const float LOG2_E = 1.4426950408889634f, LEAST = -126, MOST = 126;

/* 2^x = 2^n 2^f with an integer n and |f| <= 1/2: 2^f by a polynomial, and n into the exponent's
   bits. Off by one unit in the last place at most, from LEAST to MOST; beyond, that of these. */
INLINED float power_of_2(float x) {
    x = x < LEAST ? LEAST : x;
    x = x > MOST ? MOST : x;
    float shifted = x + 0x1.8p23f; /* where float32 has no fractions: n is in the last bits */
    float f = x - (shifted - 0x1.8p23f);
    float result = 0.00015461447462985332f;
    result = result * f + 0.0013390867351400178f;
    result = result * f + 0.009618056669887258f;
    result = result * f + 0.05550357104252972f;
    result = result * f + 0.2402265092234272f;
    result = result * f + 0.6931471880293429f;
    result = result * f + 1.0f;
    uint32_t bits, whole;
    memcpy(&bits, &result, sizeof bits);
    memcpy(&whole, &shifted, sizeof whole);
    bits += whole << 23;
    memcpy(&result, &bits, sizeof bits);
    return result;
}

INLINED float sigmoid(float x) { return 1 / (1 + power_of_2(x * -LOG2_E)); }

/* c = c sigmoid(c) b */
INLINED void silu(const arrays *p, int first, int end) {
    float *restrict c = p->c;
    const float *restrict b = p->b;
    for (int i = first; i < end; i++) c[i] = c[i] * sigmoid(c[i]) * b[i];
}

/* c = the derivative of x sigmoid(x) at x = c, times b */
INLINED void silu_slope(const arrays *p, int first, int end) {
    float *restrict c = p->c;
    const float *restrict b = p->b;
    for (int i = first; i < end; i++) {
        float s = sigmoid(c[i]);
        c[i] = b[i] * s * (1 + c[i] * (1 - s));
    }
}

/* Each row of c; nothing but NaN where the largest number is not finite. Exactly 0 below -87.3. */
INLINED void softmax(const arrays *p, int first, int end) {
    for (int row = first; row < end; row++) {
        float *c = p->c + (size_t)row * p->step;
        int n = p->columns - (p->causal ? p->causal - 1 - row % p->causal : 0);
        int whole = n - n % LANES;
        float tops[LANES], sums[LANES] = {0}, top = -INFINITY, sum = 0;
        for (int j = 0; j < LANES; j++) tops[j] = -INFINITY;
        for (int i = 0; i < whole; i += LANES)
            for (int j = 0; j < LANES; j++) tops[j] = c[i + j] > tops[j] ? c[i + j] : tops[j];
        for (int j = 0; j < LANES; j++) top = tops[j] > top ? tops[j] : top;
        for (int i = whole; i < n; i++) top = c[i] > top ? c[i] : top;
        for (int i = 0; i < whole; i += LANES)
            for (int j = 0; j < LANES; j++) {
                float power = power_of_2((c[i + j] - top) * LOG2_E) - 0x1p-126f;
                power = c[i + j] == c[i + j] ? power : NAN;
                sums[j] += c[i + j] = power;
            }
        for (int i = whole; i < n; i++) {
            float power = power_of_2((c[i] - top) * LOG2_E) - 0x1p-126f;
            sum += c[i] = c[i] == c[i] ? power : NAN;
        }
        for (int j = 0; j < LANES; j++) sum += sums[j];
        float factor = top <= FLT_MAX && top >= -FLT_MAX ? 1 / sum : NAN;
        for (int i = 0; i < n; i++) c[i] *= factor;
        memset(c + n, 0, sizeof(float) * (size_t)(p->columns - n));
    }
}

/* Each row of c: b (c - sum of b c), the derivative of a softmax b, times c. */
INLINED void softmax_slope(const arrays *p, int first, int end) {
    int n = p->columns, whole = n - n % LANES;
    for (int row = first; row < end; row++) {
        float *restrict c = p->c + (size_t)row * n, sums[LANES] = {0}, sum = 0;
        const float *restrict b = p->b + (size_t)row * n;
        for (int i = 0; i < whole; i += LANES)
            for (int j = 0; j < LANES; j++) sums[j] += b[i + j] * c[i + j];
        for (int i = whole; i < n; i++) sum += b[i] * c[i];
        for (int j = 0; j < LANES; j++) sum += sums[j];
        for (int i = 0; i < n; i++) c[i] = b[i] * (c[i] - sum);
    }
}

FOR_EACH_PROCESSOR(silu_of, arrays, silu)
FOR_EACH_PROCESSOR(silu_slope_of, arrays, silu_slope)
FOR_EACH_PROCESSOR(softmax_of, arrays, softmax)
FOR_EACH_PROCESSOR(softmax_slope_of, arrays, softmax_slope)

void in_place(int which, int rows, int columns, const float *b, float *c, int step) {
    arrays all = {columns, step, which / KINDS, b, c};
    double most = (double)rows * columns / SHARE;
    switch (which % KINDS) {
    case SILU: in_parts(silu_of, &all, columns, most); break;
    case SILU_SLOPE: in_parts(silu_slope_of, &all, columns, most); break;
    case SOFTMAX: in_parts(softmax_of, &all, rows, most); break;
    case SOFTMAX_SLOPE:
        all.columns = which / KINDS;
        in_parts(softmax_slope_of, &all, columns / all.columns, most);
        break;
    }
}
