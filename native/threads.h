// Who computes which tile. The result does not depend on it.
#pragma once

#include <omp.h>

#include "plan.h"

namespace normwright {

// Below this many values a second thread costs more than it brings.
constexpr int64_t kWorthAThread = 1 << 14;

// A forked child has its parent's OpenMP but not its threads, and would wait for them for ever.
bool is_forked_child();

inline int threads_for(const Plan& plan) {
  if (is_forked_child()) return 1;
  const int64_t values = plan.at.count() * plan.at.channels;
  const int64_t most = std::min<int64_t>(omp_get_max_threads(), std::max<int64_t>(1, values / kWorthAThread));
  return omp_in_parallel() ? 1 : int(std::min(most, plan.tiles()));
}

struct Range {
  int64_t first, last;
};
inline Range share(int64_t n, int thread, int threads) { return {n * thread / threads, n * (thread + 1) / threads}; }

// Calls body(thread, threads) on every thread. A call that needs one alone does not bother OpenMP.
template <class Body>
void on_threads(int threads, Body body) {
  if (threads == 1) return body(0, 1);
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num(), omp_get_num_threads());
}

// Reduce, gap, apply.
//   before(c0, c1)    what the reduction needs to know of channels [c0, c1)
//   reduce(tile, sums)
//   gap(c0, c1)       the sums of channels [c0, c1) are complete: merge them, compute what apply needs
//   apply(tile)
//
// Where a group of channels fits into the cache of its core, one thread takes it through all four, so that `apply` reads
// what `reduce` left there. Otherwise all threads reduce all tiles, then apply them, each thread its own tiles in reverse,
// beginning with what is still in cache.
template <class Before, class Reduce, class Gap, class Apply>
void reduce_gap_apply(const Plan& plan, int64_t bytes_per_value, Before before, Reduce reduce, Gap gap, Apply apply) {
  constexpr int64_t kGroupBytes = 4 << 20;
  const int threads = threads_for(plan);
  const int64_t group_bytes = plan.group * plan.at.count() * bytes_per_value;
  const bool balanced = plan.groups % threads == 0 || plan.groups >= 8 * threads;
  const int64_t chunks = plan.chunks();

  if (plan.repeat == 1 && (threads == 1 || balanced) && group_bytes <= kGroupBytes) {
    on_threads(threads, [&](int me, int all) {
      const Range mine = share(plan.groups, me, all);
      for (int64_t g = mine.first; g < mine.last; ++g) {
        const Tile first = plan.tile(0, g);
        before(first.c0, first.c1);
        for (int64_t k = 0; k < chunks; ++k) reduce(plan.tile(k, g), k);
        gap(first.c0, first.c1);
        for (int64_t k = chunks - 1; k >= 0; --k) apply(plan.tile(k, g));
      }
    });
    return;
  }
  on_threads(threads, [&](int me, int all) {
    const Range tiles = share(plan.tiles(), me, all);
    // Folded channels are few, and merged together: one thread's work.
    const Range channels = plan.repeat == 1 ? share(plan.channels(), me, all) : Range{0, me == 0 ? plan.channels() : 0};
    before(channels.first, channels.last);
#pragma omp barrier
    for (int64_t t = tiles.first; t < tiles.last; ++t) reduce(plan.tile(t / plan.groups, t % plan.groups), t / plan.groups);
#pragma omp barrier
    gap(channels.first, channels.last);
#pragma omp barrier
    for (int64_t t = tiles.last - 1; t >= tiles.first; --t) apply(plan.tile(t / plan.groups, t % plan.groups));
  });
}

template <class Each>
void each_tile(const Plan& plan, Each each) {
  on_threads(threads_for(plan), [&](int me, int all) {
    const Range tiles = share(plan.tiles(), me, all);
    for (int64_t t = tiles.first; t < tiles.last; ++t) each(plan.tile(t / plan.groups, t % plan.groups));
  });
}

}  // namespace normwright
