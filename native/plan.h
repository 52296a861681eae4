// Plan: how a layout is cut into tiles. Depends on the shape alone, never on the number of threads, so that sums are
// formed in one order whoever computes them.
#pragma once

#include <algorithm>

#include "kernels.h"

namespace normwright {

struct Plan {
  Layout at;             // what the tiles refer to
  Layout rest;           // rows that did not fit when rows were folded (rest.outer may be 0)
  int64_t repeat = 1;    // at.channels = repeat * real channels
  bool adjacent = false; // a channel's columns lie side by side, and not `channels()` apart
  int64_t group;         // channels per tile
  int64_t groups;
  int64_t outer_step, inner_step;
  int64_t outer_chunks, inner_chunks;

  int64_t channels() const { return at.channels / repeat; }
  int64_t column(int64_t c, int64_t j) const { return adjacent ? c * repeat + j : c + j * channels(); }
  int64_t chunks() const { return outer_chunks * inner_chunks; }
  int64_t tiles() const { return groups * chunks(); }
  Tile tile(int64_t chunk, int64_t g) const {
    const int64_t o = chunk / inner_chunks * outer_step, i = chunk % inner_chunks * inner_step;
    return {g * group,   std::min((g + 1) * group, at.channels), o, std::min(o + outer_step, at.outer), i,
            std::min(i + inner_step, at.inner)};
  }
  Tile rest_tile() const { return {0, rest.channels, 0, rest.outer, 0, 1}; }
};

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// About `step`, so that there are 2, 4, 8, ... steps: as many for each of some threads.
inline int64_t evenly(int64_t size, int64_t step) {
  int64_t steps = 1;
  while (steps * step < size) steps *= 2;
  return divide_up(size, std::min(steps, size));
}

inline Plan make_plan(Layout at) {
  // Few channels fill no vector, or a part of the last: 16 rows are then seen as one of 16 times the channels.
  constexpr int64_t kFold = 16, kFew = 32;
  // Values per tile: enough tiles for many threads, few enough that merging them costs nothing. With channels in the
  // middle smaller ones, so that many threads can share a channel.
  const int64_t values = std::clamp<int64_t>(at.count() * at.channels / 64, 1 << 15, at.inner == 1 ? 1 << 20 : 1 << 16);
  Plan p{};
  p.rest = {0, at.channels, 1, at.stride};
  // Maps of a few values fill no vector either: each is then as many columns of a row.
  if (at.inner > 1 && at.inner < kFold) {
    p.repeat = at.inner;
    p.adjacent = true;
    at = {at.outer, at.channels * at.inner, 1, at.stride};
  }
  if (at.inner == 1) {
    if (p.repeat == 1 && at.channels <= kFew && at.channels % kFold != 0 && at.stride == at.channels && at.outer >= kFold) {
      p.repeat = kFold;
      p.rest.outer = at.outer % kFold;
      at = {at.outer / kFold, at.channels * kFold, 1, at.stride * kFold};
    }
    const int64_t strips = divide_up(at.channels, kStrip);
    p.group = strips == 1 ? at.channels : round_up(divide_up(at.channels, strips), 16);
    p.outer_step = round_up(evenly(at.outer, std::max<int64_t>(256, values / p.group)), 8);
    p.inner_step = 1;
  } else {
    // A few kilobytes of neighbouring channels, so that small maps share their cache lines.
    p.group = std::clamp<int64_t>(divide_up(1024, at.inner), 1, at.channels);
    p.outer_step = evenly(at.outer, std::max<int64_t>(1, values / (p.group * at.inner)));
    p.inner_step = at.inner <= values ? at.inner : round_up(evenly(at.inner, values), 2048);
  }
  p.at = at;
  p.groups = divide_up(at.channels, p.group);
  p.outer_chunks = divide_up(at.outer, p.outer_step);
  p.inner_chunks = divide_up(at.inner, p.inner_step);
  return p;
}

}  // namespace normwright
