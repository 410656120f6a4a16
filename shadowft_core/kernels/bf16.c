/* One pass over bfloat16 words where numpy needs a dozen. Measured: it halves the CPU time of a graft.
 *
 * The bits are those of numpy and ml_dtypes: every operation is float32, in this order, never fused
 * (-ffp-contract=off), and the cast rounds to nearest even. Only NaN is cast differently. It makes the sums NaN, and
 * callers refuse such sums. Sums run in LANES float32 lanes over BLOCK elements, then in double, so they do not depend
 * on the compiler.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VERSION 2 /* raised when a function's arguments or meaning change; bf16.py requires an equal one */
#define LANES 8
#define BLOCK 4096 /* elements, a multiple of 2 * LANES */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EVERY_MACHINE __attribute__((target_clones("avx2", "default")))
#else
#define EVERY_MACHINE
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef uint16_t words __attribute__((vector_size(2 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef float half __attribute__((vector_size(2 * LANES)));
typedef double doubles __attribute__((vector_size(4 * LANES))); /* half the lanes */

int shadowft_version(void)
{
    return VERSION;
}

ALWAYS_INLINE void widen(floats *out, const words *in)
{
    bits wide = __builtin_convertvector(*in, bits) << 16;
    memcpy(out, &wide, sizeof wide);
}

ALWAYS_INLINE void narrow(words *out, const floats *in)
{
    bits wide;
    memcpy(&wide, in, sizeof wide);
    wide = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    *out = __builtin_convertvector(wide, words);
}

/* memcpy; one instruction for a full vector */
ALWAYS_INLINE void take(void *out, const void *in, size_t width, size_t count)
{
    if (count == LANES)
        memcpy(out, in, width * LANES);
    else
        memcpy(out, in, width * count);
}

/* out = after - before */
EVERY_MACHINE void shadowft_subtract(const uint16_t *after, const uint16_t *before, float *out, size_t size)
{
    for (size_t i = 0; i < size; i += LANES) {
        size_t count = size - i < LANES ? size - i : LANES;
        words a = {0}, b = {0};
        floats x, y;
        take(&a, after + i, 2, count);
        take(&b, before + i, 2, count);
        widen(&x, &a);
        widen(&y, &b);
        x -= y;
        take(out + i, &x, 4, count);
    }
}

/* How much of a delta survives the cast. With reached = result - weights: |weights|^2, |delta|^2, |reached|^2,
 * <delta, reached>, |reached - delta|^2, the number of nonzero entries of delta, and how many of those left the weight
 * unchanged. Zeros change no sum. */
typedef struct {
    floats weight2, delta2, reached2, product, error2;
    bits moves, lost;
} account;

/* out = the rounded sum, a bfloat16 number in float32 */
ALWAYS_INLINE void add_rounded(bits *out, const floats *weights, const floats *delta, account *sums)
{
    const bits one = (bits){0} + 1;
    floats w = *weights, d = *delta, sum = w + d, reached, error;
    bits wide;
    memcpy(&wide, &sum, sizeof wide);
    wide = (wide + 0x7fffu + ((wide >> 16) & 1u)) & 0xffff0000u;
    memcpy(&reached, &wide, sizeof reached);
    reached -= w;
    error = reached - d;
    sums->weight2 += w * w;
    sums->delta2 += d * d;
    sums->reached2 += reached * reached;
    sums->product += d * reached;
    sums->error2 += error * error;
    sums->moves += (bits)(d != 0) & one;
    sums->lost += (bits)(d != 0) & (bits)(reached == 0) & one;
    *out = wide;
}

ALWAYS_INLINE void add_account(double sums[7], const account *found)
{
    for (size_t lane = 0; lane < LANES; lane++) {
        sums[0] += found->weight2[lane];
        sums[1] += found->delta2[lane];
        sums[2] += found->reached2[lane];
        sums[3] += found->product[lane];
        sums[4] += found->error2[lane];
        sums[5] += found->moves[lane];
        sums[6] += found->lost[lane];
    }
}

/* result = bfloat16(weights + delta); adds its account to sums */
EVERY_MACHINE void shadowft_add(
    const uint16_t *weights, const float *delta, uint16_t *result, size_t size, double sums[7])
{
    for (size_t start = 0; start < size; start += BLOCK) {
        size_t end = size - start < BLOCK ? size : start + BLOCK;
        account found = {0};
        for (size_t i = start; i < end; i += LANES) {
            size_t count = end - i < LANES ? end - i : LANES;
            words word = {0};
            floats w, d = {0};
            bits wide;
            take(&word, weights + i, 2, count);
            take(&d, delta + i, 4, count);
            widen(&w, &word);
            add_rounded(&wide, &w, &d, &found);
            word = __builtin_convertvector(wide >> 16, words);
            take(result + i, &word, 2, count);
        }
        add_account(sums, &found);
    }
}

/* The same for the delta (after - before) * scale. A 32-bit lane holds two words; shifting or masking one of them away
 * leaves the other as a float32 number, so nothing needs widening or packing. Little-endian, as in safetensors. */
EVERY_MACHINE void shadowft_add_apart(
    const uint16_t *weights, const uint16_t *after, const uint16_t *before, float scale, uint16_t *result, size_t size,
    double sums[7])
{
    const bits high = (bits){0} + 0xffff0000u;
    for (size_t start = 0; start < size; start += BLOCK) {
        size_t end = size - start < BLOCK ? size : start + BLOCK;
        account found = {0};
        for (size_t i = start; i < end; i += 2 * LANES) {
            size_t count = end - i < 2 * LANES ? end - i : 2 * LANES;
            bits w = {0}, a = {0}, b = {0}, low, out;
            floats x, d, before_;
            if (count == 2 * LANES) {
                memcpy(&w, weights + i, sizeof w);
                memcpy(&a, after + i, sizeof a);
                memcpy(&b, before + i, sizeof b);
            } else {
                memcpy(&w, weights + i, 2 * count);
                memcpy(&a, after + i, 2 * count);
                memcpy(&b, before + i, 2 * count);
            }
            x = (floats)(w << 16), d = (floats)(a << 16), before_ = (floats)(b << 16);
            d = (d - before_) * scale;
            add_rounded(&low, &x, &d, &found);
            x = (floats)(w & high), d = (floats)(a & high), before_ = (floats)(b & high);
            d = (d - before_) * scale;
            add_rounded(&out, &x, &d, &found);
            out |= low >> 16;
            if (count == 2 * LANES)
                memcpy(result + i, &out, sizeof out);
            else
                memcpy(result + i, &out, 2 * count);
        }
        add_account(sums, &found);
    }
}

/* out = bfloat16(values); odd = the positions, in order, of the values that bfloat16 cannot represent. Returns their
 * number. *square = the sum of squares, in double. */
EVERY_MACHINE size_t shadowft_round(
    const float *values, uint16_t *out, uint32_t *odd, size_t size, double *square)
{
    enum { FEW = 64 }; /* elements, a multiple of LANES; one exception costs a second pass over this many */
    size_t found = 0;
    doubles low2 = {0}, high2 = {0};
    for (size_t start = 0; start < size; start += FEW) {
        size_t end = size - start < FEW ? size : start + FEW;
        bits differs = {0};
        uint32_t any = 0;
        for (size_t i = start; i < end; i += LANES) {
            size_t count = end - i < LANES ? end - i : LANES;
            floats value = {0}, back;
            words word;
            take(&value, values + i, 4, count);
            narrow(&word, &value);
            widen(&back, &word);
            take(out + i, &word, 2, count);
            differs |= (bits)(back != value);
            half halves[2];
            memcpy(halves, &value, sizeof value);
            doubles low = __builtin_convertvector(halves[0], doubles), high = __builtin_convertvector(halves[1], doubles);
            low2 += low * low;
            high2 += high * high;
        }
        for (size_t lane = 0; lane < LANES; lane++)
            any |= differs[lane];
        if (any)
            for (size_t i = start; i < end; i++) {
                uint32_t wide = (uint32_t)out[i] << 16;
                float back;
                memcpy(&back, &wide, sizeof back);
                if (back != values[i])
                    odd[found++] = (uint32_t)i;
            }
    }
    *square = 0;
    for (size_t lane = 0; lane < LANES / 2; lane++)
        *square += low2[lane] + high2[lane];
    return found;
}

/* planes = the low bytes, then the high bytes, of the words rotated left by one bit */
EVERY_MACHINE void shadowft_split(const uint16_t *in, uint8_t *planes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        uint16_t rotated = (uint16_t)(in[i] << 1 | in[i] >> 15);
        planes[i] = (uint8_t)rotated;
        planes[size + i] = (uint8_t)(rotated >> 8);
    }
}

/* the inverse of shadowft_split: out = the values in float32 */
EVERY_MACHINE void shadowft_join(const uint8_t *planes, float *out, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        uint32_t rotated = (uint32_t)planes[i] | (uint32_t)planes[size + i] << 8;
        uint32_t wide = (rotated >> 1 | rotated << 15) << 16;
        memcpy(out + i, &wide, sizeof wide);
    }
}

/* sums += |a - b|, |a|, |b|. Every sum runs down COLUMNS columns in float32, then over the columns in double. bf16.py
 * does the same with numpy, so each column has the same bits. */
#define COLUMNS 1024
#define ROWS 4 /* handled together, so that column sums are loaded and stored less often */

ALWAYS_INLINE void add_distance(floats sums[3], const words *a, const words *b)
{
    const bits magnitude = (bits){0} + 0x7fffffffu;
    floats x, y, difference;
    widen(&x, a);
    widen(&y, b);
    difference = x - y;
    sums[0] += (floats)((bits)difference & magnitude);
    sums[1] += (floats)((bits)x & magnitude);
    sums[2] += (floats)((bits)y & magnitude);
}

EVERY_MACHINE void shadowft_distance(const uint16_t *a, const uint16_t *b, size_t size, double sums[3])
{
    floats columns[COLUMNS / LANES][3] = {0};
    size_t start = 0;
    for (; start + ROWS * COLUMNS <= size; start += ROWS * COLUMNS)
        for (size_t column = 0; column < COLUMNS; column += LANES) {
            floats kept[3];
            memcpy(kept, columns[column / LANES], sizeof kept);
            for (size_t at = start + column; at < start + ROWS * COLUMNS; at += COLUMNS) {
                words x, y;
                memcpy(&x, a + at, sizeof x);
                memcpy(&y, b + at, sizeof y);
                add_distance(kept, &x, &y);
            }
            memcpy(columns[column / LANES], kept, sizeof kept);
        }
    for (; start < size; start += LANES) {
        size_t count = size - start < LANES ? size - start : LANES;
        words x = {0}, y = {0};
        take(&x, a + start, 2, count);
        take(&y, b + start, 2, count);
        add_distance(columns[start % COLUMNS / LANES], &x, &y);
    }
    for (size_t column = 0; column < COLUMNS; column++)
        for (size_t sum = 0; sum < 3; sum++)
            sums[sum] += columns[column / LANES][sum][column % LANES];
}
