/* kernels/grid/barrier.py: a counter that only grows, and P programs that pass R barriers.
 *
 *     spin -a -DP=3 -DR=3 barrier.pml && cc -O2 -o pan pan.c && ./pan
 *
 * No program passes its n-th barrier before all have arrived n times, and none waits for ever: an invalid end state is a
 * deadlock. -DRESET checks a variant that must fail, in which the last to arrive sets the counter back to zero.
 */

#ifndef P
#define P 3
#endif
#ifndef R
#define R 3
#endif

byte counter = 0;
byte arrived[P];   /* rounds that each program has arrived in: for the assertion alone */

active [P] proctype program()
{
    byte round = 0, seen, i;

    do
    :: round == R -> break
    :: else ->
        atomic { round++; arrived[_pid] = round };
#ifdef RESET
        atomic { counter++; seen = counter };
        if
        :: seen == P -> counter = 0
        :: else -> counter == 0          /* blocks until it is */
        fi;
#else
        counter++;
        counter >= round * P;            /* blocks until it is */
#endif
        atomic {
            i = 0;
            do
            :: i < P -> assert(arrived[i] >= round); i++
            :: else -> break
            od
        }
    od
}
