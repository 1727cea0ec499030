/* What the files here share: one function for several kinds of processors, and its threads. */

#include <pthread.h>

#define INLINED static inline __attribute__((always_inline))

/* `mx.addmm` with this factor is one of the functions of exponentials.c. Almost the smallest normal
   number: nobody multiplies by it. */
#define DOOR (-0x1.5ap-126f)
__attribute__((visibility("hidden")))
void in_place(int which, int rows, int columns, const float *b, float *c, int step);

int scipy_openblas_get_num_threads(void);

/* Work on the items from first to end. */
typedef void (*worker)(const void *what, int first, int end);

typedef struct {
    worker work;
    const void *what;
    int first, end;
} part;

static void *work_on(void *argument) {
    const part *mine = argument;
    mine->work(mine->what, mine->first, mine->end);
    return NULL;
}

/* All `count` items, by as many threads as are worth starting: `most` of them, or as many as
   products have. */
static inline void in_parts(worker work, const void *what, int count, double most) {
    enum { THREADS = 64 };
    int threads = scipy_openblas_get_num_threads();
    if (threads > THREADS) threads = THREADS;
    if (threads > most) threads = (int)most;
    if (threads < 1) threads = 1;
    part parts[THREADS];
    pthread_t others[THREADS];
    int started[THREADS] = {0};
    for (int t = threads - 1; t >= 0; t--) {
        parts[t] = (part){work, what, (int)((long)count * t / threads),
                          (int)((long)count * (t + 1) / threads)};
        started[t] = t > 0 && pthread_create(&others[t], NULL, work_on, &parts[t]) == 0;
        if (!started[t]) work_on(&parts[t]);
    }
    for (int t = 1; t < threads; t++)
        if (started[t]) pthread_join(others[t], NULL);
}

static inline int has_avx2(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

/* NAME(what, first, end) is WORK(what, first, end) in the best instructions that there are. */
#if defined(__x86_64__)
#define FOR_EACH_PROCESSOR(NAME, TYPE, WORK)                                                       \
    static void NAME##_anywhere(const TYPE *what, int first, int end) { WORK(what, first, end); }  \
    __attribute__((target("avx2,fma"))) static void NAME##_avx2(                                   \
        const TYPE *what, int first, int end) { WORK(what, first, end); }                          \
    __attribute__((target("avx512f,avx2,fma"))) static void NAME##_avx512(                         \
        const TYPE *what, int first, int end) { WORK(what, first, end); }                          \
    static void NAME(const void *what, int first, int end) {                                       \
        if (__builtin_cpu_supports("avx512f")) NAME##_avx512(what, first, end);                    \
        else if (has_avx2()) NAME##_avx2(what, first, end);                                        \
        else NAME##_anywhere(what, first, end);                                                    \
    }
#else
#define FOR_EACH_PROCESSOR(NAME, TYPE, WORK)                                                       \
    static void NAME(const void *what, int first, int end) { WORK((const TYPE *)what, first, end); }
#endif
