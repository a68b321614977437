/* kernels/relay/exchange.py: P programs, N phases, ITERATIONS; words {value, stamp} in place of barriers.
 *
 *     spin -a -DP=3 -DN=3 exchange.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan
 *
 * In phase n of iteration i a program reads everyone's word of phase n-1, each as soon as its stamp is that of i, and then
 * writes its own of phase n; behind the last phase program 0 reads, alone or with -DEVERYONE, and writes the controls, which
 * phase 0 of the next iteration reads. Instead of a value a word holds when it was computed. Asserted: what is read is what
 * was meant, and no word is written over before all have read it. That nobody waits for ever is the absence of invalid end
 * states.
 *
 * Variants that must fail: -DCONSTANT, stamps that are the same in all iterations; -DHASTY, the last program takes the controls
 * as it finds them; -DDEAF, it takes none, and with N = 2 writes over what is still to be read; -DONE_SLOT, for all phases;
 * -DSTAMP_FIRST, two stores for a word; -DEVERYONE with N = 1, where phase 0 is the last one. With -DUNWATCHED what is written over unread is left to its consequences.
 */

#ifndef P
#define P 3
#endif
#ifndef N
#define N 3
#endif
#ifndef ITERATIONS
#define ITERATIONS 3
#endif

#define ALL ((1 << P) - 1)
#ifdef EVERYONE
#define ALONE false
#else
#define ALONE true
#endif
#define LAST (_pid == P - 1)

/* Of phase n in iteration i, N for the controls. */
#define VALUE(i, n) ((i) * (N + 1) + (n) + 1)
#define WORD(n, q) (SLOT(n) * P + (q))
#ifdef ONE_SLOT
#define SLOT(n) ((n) == N -> 1 : 0)
#define STAMP(i, n) ((i) * N + (n) + 1)
#else
#define SLOT(n) (n)
#ifdef CONSTANT
#define STAMP(i, n) 1
#else
#define STAMP(i, n) ((i) + 1)
#endif
#endif

#ifdef HASTY
#define TAKES(i, n, q) (stamp[WORD(n, q)] == STAMP(i, n) || (LAST && (n) == N))
#else
#define TAKES(i, n, q) (stamp[WORD(n, q)] == STAMP(i, n))
#endif
#ifdef DEAF
#define HEARS (!LAST)
#define HEARING (ALL >> 1)
#else
#define HEARS true
#define HEARING ALL
#endif

byte stamp[(N + 1) * P];
byte value[(N + 1) * P];
byte unread[(N + 1) * P];   /* by which programs, as bits: for the assertion alone */

#define READ(i, n, q) \
    atomic { \
        (todo & (1 << q)) && TAKES(i, n, q) -> \
            assert(value[WORD(n, q)] == VALUE(i, n)); \
            unread[WORD(n, q)] = unread[WORD(n, q)] & (ALL - (1 << _pid)); \
            todo = todo - (1 << q) \
    }

/* Polls the words of these programs, in any order. */
inline read(i, n, whose)
{
    todo = whose;
    do
    :: todo == 0 -> break
    :: READ(i, n, 0)
#if P > 1
    :: READ(i, n, 1)
#endif
#if P > 2
    :: READ(i, n, 2)
#endif
#if P > 3
    :: READ(i, n, 3)
#endif
    od
}

inline write(i, n, readers)
{
#ifdef STAMP_FIRST
    stamp[WORD(n, _pid)] = STAMP(i, n);
#endif
    atomic {
#ifndef UNWATCHED
        assert(unread[WORD(n, _pid)] == 0);
#endif
        stamp[WORD(n, _pid)] = STAMP(i, n);
        value[WORD(n, _pid)] = VALUE(i, n);
        unread[WORD(n, _pid)] = readers
    }
}

active [P] proctype program()
{
    byte iteration = 0, phase, todo;

    do
    :: iteration == ITERATIONS -> break
    :: else ->
        if
        :: iteration > 0 && HEARS -> read(iteration - 1, N, 1)
        :: else
        fi;
        phase = 0;
        write(iteration, 0, (N == 1 && ALONE -> 1 : ALL));
        do
        :: phase == N - 1 -> break
        :: else ->
            phase++;
            read(iteration, phase - 1, ALL);
            write(iteration, phase, (phase == N - 1 && ALONE -> 1 : ALL))
        od;
        if
        :: _pid == 0 -> read(iteration, N - 1, ALL); write(iteration, N, HEARING)
        :: _pid > 0 && !ALONE -> read(iteration, N - 1, ALL)
        :: else
        fi;
        iteration++
    od
}
