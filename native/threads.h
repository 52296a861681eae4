// Who computes which tile. The result does not depend on it.
#pragma once

#include <omp.h>

#include "plan.h"

namespace normwright {

// Below this many values a second thread costs more than it brings.
constexpr int64_t kWorthAThread = 1 << 14;

// A forked child has its parent's OpenMP but not its threads, and would wait for them for ever.
bool is_forked_child();
// For a child that knows better: its parent had not used a thread yet.
void trust_fork();

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
// `apply` is to find in cache what `reduce` read, `bytes_per_value` of it. Where a group of channels fits into the cache of
// one core (or has fewer tiles than there are threads), each thread takes groups of its own through all four. Where it does
// not, all threads share the groups, one
// after the other, each applying its own tiles in reverse, beginning with what it read last. Where there is one group only,
// as with channels last, that is all tiles reduced, then all applied.
template <class Before, class Reduce, class Gap, class Apply>
void reduce_gap_apply(const Plan& plan, int64_t bytes_per_value, Before before, Reduce reduce, Gap gap, Apply apply) {
  const int threads = threads_for(plan);
  const int64_t chunks = plan.chunks();
  const int64_t group_bytes = plan.group * plan.at.count() * bytes_per_value;
  const bool balanced = plan.groups % threads == 0 || plan.groups >= 8 * threads;

  if (plan.repeat == 1 && (threads == 1 || (balanced && (group_bytes <= core_cache_bytes() || chunks < threads)))) {
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
  // Small groups are shared several at a time: to wait for one another takes microseconds.
  const int64_t together = plan.repeat > 1 ? plan.groups
                                           : std::clamp<int64_t>(threads * core_cache_bytes() / 2 / group_bytes, 1, plan.groups);
  on_threads(threads, [&](int me, int all) {
    const auto wait_for_all = [all] {
      if (all == 1) return;  // perhaps inside a team of somebody else's
#pragma omp barrier
    };
    for (int64_t g = 0; g < plan.groups; g += together) {
      const int64_t some = std::min(together, plan.groups - g);
      const Range tiles = share(some * chunks, me, all);
      // Folded channels are few, and merged together: one thread's work.
      const int64_t c0 = plan.tile(0, g).c0, c1 = plan.tile(0, g + some - 1).c1;
      Range channels = share(c1 - c0, me, all);
      channels = plan.repeat == 1 ? Range{c0 + channels.first, c0 + channels.last} : Range{0, me == 0 ? plan.channels() : 0};
      before(channels.first, channels.last);
      wait_for_all();
      for (int64_t t = tiles.first; t < tiles.last; ++t) reduce(plan.tile(t / some, g + t % some), t / some);
      wait_for_all();
      gap(channels.first, channels.last);
      wait_for_all();
      for (int64_t t = tiles.last - 1; t >= tiles.first; --t) apply(plan.tile(t / some, g + t % some));
    }
  });
}

// Where nothing is reduced, the order of memory is the best. Runs that the plan cuts are left as it cuts them.
template <class Each>
void each_tile(const Plan& plan, Each each) {
  on_threads(threads_for(plan), [&](int me, int all) {
    const int64_t channels = plan.at.channels;
    if (plan.at.inner > 1 && plan.inner_chunks == 1) {
      const Range runs = share(plan.at.outer * channels, me, all);
      for (int64_t r = runs.first, c1; r < runs.last; r += c1 - r % channels) {
        const int64_t o = r / channels, c0 = r % channels;
        c1 = std::min(channels, c0 + runs.last - r);
        each(Tile{c0, c1, o, o + 1, 0, plan.at.inner});
      }
      return;
    }
    const Range tiles = share(plan.tiles(), me, all);
    for (int64_t t = tiles.first; t < tiles.last; ++t) each(plan.tile(t / plan.groups, t % plan.groups));
  });
}

}  // namespace normwright
