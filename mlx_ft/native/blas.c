/* What MLX calls on a Linux CPU: `cblas_sgemm` and `cblas_dgemm`, given to scipy-openblas32, which
   has both under another name. Two kinds of float32 products take another way. MLX multiplies few
   rows by a large matrix for each token of an answer, and OpenBLAS copies that matrix before it
   multiplies: what reads it once is two to five times faster. beta = 0 must not read c, nor
   alpha = 0 the others. And what has the factor DOOR is no product (exponentials.c). */

#include <string.h>

#include "native.h"

#define ARGS(T) int order, int ta, int tb, int m, int n, int k, T alpha, const T *a, int lda, \
    const T *b, int ldb, T beta, T *c, int ldc
#define PASS order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc
enum { ROWS = 101, AS_IT_IS = 111, TRANSPOSED = 112 };
void scipy_cblas_sgemm(ARGS(float));
void scipy_cblas_dgemm(ARGS(double));
void scipy_cblas_sgemv(int order, int t, int rows, int columns, float alpha, const float *a,
    int lda, const float *x, int step, float beta, float *y, int y_step);

/* Few rows: c = alpha a b' + beta c, where each number of a row is the product of one of the rows
   of a and one of b. The sums of a row are the same whatever other rows of these there are, and
   whatever threads. Copying is faster for shorter sums, for longer ones, which leave the cache, and
   for more rows, the sooner the fewer numbers a register has. */

enum { FEW = 8, FEWER = 4, SHORT = 256, LONG = 1 << 15, TALL = 4, WIDE = 2, LANES = 8, AHEAD = 4,
       SMALL = 1 << 14, SHARE = 1 << 17 };
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float anywhere __attribute__((vector_size(4 * LANES), aligned(4)));

typedef struct {
    int m, n, k, lda, ldb, ldc;
    float alpha, beta;
    const float *a, *b;
    float *c;
} product;

INLINED void tile(const product *p, int row, int column, const int tall, const int wide) {
    const float *a = p->a + (size_t)row * p->lda, *b = p->b + (size_t)column * p->ldb;
    vector sums[TALL][WIDE] = {0};
    int l = 0;
    for (; l + LANES <= p->k; l += LANES) {
        vector y[WIDE];
        for (int j = 0; j < wide; j++) {
            y[j] = *(const anywhere *)(b + (size_t)j * p->ldb + l);
            if (row == 0) __builtin_prefetch(b + (size_t)(j + AHEAD) * p->ldb + l);
        }
        for (int i = 0; i < tall; i++) {
            vector x = *(const anywhere *)(a + (size_t)i * p->lda + l);
            for (int j = 0; j < wide; j++) sums[i][j] += x * y[j];
        }
    }
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < wide; j++) {
            float sum = 0;
            for (int r = l; r < p->k; r++)
                sum += a[(size_t)i * p->lda + r] * b[(size_t)j * p->ldb + r];
            vector lanes = sums[i][j];
            sum += ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6]))
                   + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
            float *c = p->c + (size_t)(row + i) * p->ldc + column + j;
            *c = p->alpha * sum + (p->beta == 0 ? 0 : p->beta * *c);
        }
}

INLINED void down(const product *p, int column, const int wide) {
    int row = 0;
    for (; row + TALL <= p->m; row += TALL) tile(p, row, column, TALL, wide);
    switch (p->m - row) {
    case 3: tile(p, row, column, 3, wide); break;
    case 2: tile(p, row, column, 2, wide); break;
    case 1: tile(p, row, column, 1, wide); break;
    }
}

INLINED void across(const product *p, int column, int end) {
    for (; column + WIDE <= end; column += WIDE) down(p, column, WIDE);
    if (column < end) down(p, column, 1);
}

/* Rows of b, from first to end. */
FOR_EACH_PROCESSOR(columns, product, across)

static void few_rows(const product *p) {
    in_parts(columns, p, p->n, (double)p->n * p->k / SHARE);
}

void cblas_sgemm(ARGS(float)) {
    if (alpha == DOOR && order == ROWS && k == 1) {
        in_place((int)a[0], m, n, b, c, ldc);
    } else if (order == ROWS && m == 1 && n > 0 && k > 0) {
        if (beta == 0) memset(c, 0, sizeof(float) * (size_t)n);
        int step = ta == AS_IT_IS ? 1 : lda;
        int t = tb == AS_IT_IS ? TRANSPOSED : AS_IT_IS;
        int rows = tb == AS_IT_IS ? k : n, columns = tb == AS_IT_IS ? n : k;
        scipy_cblas_sgemv(ROWS, t, rows, columns, alpha, b, ldb, a, step, beta, c, 1);
    } else if (order == ROWS && ta == AS_IT_IS && tb == TRANSPOSED && m > 1
               && m <= (has_avx2() ? FEW : FEWER) && alpha != 0 && k >= SHORT && k <= LONG
               && (long)n * k >= SMALL) {
        product p = {m, n, k, lda, ldb, ldc, alpha, beta, a, b, c};
        few_rows(&p);
    } else {
        scipy_cblas_sgemm(PASS);
    }
}

void cblas_dgemm(ARGS(double)) { scipy_cblas_dgemm(PASS); }
