/* The two formulas of rounding.py in one pass over memory. C99 without Python.h, so that a C compiler alone builds it,
 * once for every Python version; rounding_shift.py loads it.
 *
 * Each distance has a loop of its own: only by a constant do GCC and Clang shift bytes as bytes, sixteen at a time with
 * what every x86-64 (SSE2) and every ARMv8 (NEON) has.
 */

#include <stddef.h>
#include <stdint.h>

static inline int8_t rounded(int8_t code, int distance, int8_t limit, int is_half_even)
{
    const int8_t addend = (int8_t)((1 << (distance - 1)) - is_half_even);
    const int8_t odd = (int8_t)(is_half_even ? (code >> distance) & 1 : 0);
    int8_t sum = code < limit ? code : limit;
    sum = (int8_t)(sum + addend);
    sum = (int8_t)(sum + odd);
    return (int8_t)(sum >> distance); /* arithmetic on negative numbers, as in every compiler for these processors */
}

#define LOOP(DISTANCE, IS_HALF_EVEN)                                                                                   \
    for (size_t i = 0; i < count; ++i)                                                                                 \
        derived[i] = rounded(codes[i], DISTANCE, limit, IS_HALF_EVEN);                                                 \
    break

#define RULE(IS_HALF_EVEN)                                                                                             \
    switch (distance) {                                                                                                \
    case 1: LOOP(1, IS_HALF_EVEN);                                                                                     \
    case 2: LOOP(2, IS_HALF_EVEN);                                                                                     \
    case 3: LOOP(3, IS_HALF_EVEN);                                                                                     \
    case 4: LOOP(4, IS_HALF_EVEN);                                                                                     \
    case 5: LOOP(5, IS_HALF_EVEN);                                                                                     \
    case 6: LOOP(6, IS_HALF_EVEN);                                                                                     \
    }

/* `codes` [count] to `derived` [count], which may be the same memory; `distance` is 1..6. */
void rounding_shift(const int8_t *codes, int8_t *derived, size_t count, int distance, int8_t limit, int is_half_even)
{
    if (is_half_even)
        RULE(1)
    else
        RULE(0)
}
