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
  int64_t group;         // channels per tile
  int64_t groups;
  int64_t outer_step, inner_step;
  int64_t outer_chunks, inner_chunks;

  int64_t channels() const { return at.channels / repeat; }
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

inline Plan make_plan(Layout at) {
  // Fewer than 16 channels fill no vector: 16 rows are then seen as one of 16 times the channels.
  constexpr int64_t kFold = 16;
  // Values per tile: enough tiles for many threads, few enough that merging them costs nothing.
  const int64_t values = std::clamp<int64_t>(at.count() * at.channels / 64, 1 << 15, 1 << 20);
  Plan p{};
  p.repeat = 1;
  p.rest = {0, at.channels, 1, at.stride};
  if (at.inner == 1) {
    if (at.channels < kFold && at.stride == at.channels && at.outer >= kFold) {
      p.repeat = kFold;
      p.rest.outer = at.outer % kFold;
      at = {at.outer / kFold, at.channels * kFold, 1, at.stride * kFold};
    }
    const int64_t strips = divide_up(at.channels, kStrip);
    p.group = strips == 1 ? at.channels : round_up(divide_up(at.channels, strips), 16);
    p.outer_step = round_up(std::max<int64_t>(64, values / p.group), 8);
    p.inner_step = 1;
  } else {
    // A few kilobytes of neighbouring channels, so that small maps share their cache lines.
    p.group = std::clamp<int64_t>(divide_up(1024, at.inner), 1, at.channels);
    p.outer_step = std::max<int64_t>(1, values / (p.group * at.inner));
    p.inner_step = at.inner <= values ? at.inner : round_up(divide_up(at.inner, divide_up(at.inner, values)), 2048);
  }
  p.at = at;
  p.groups = divide_up(at.channels, p.group);
  p.outer_chunks = divide_up(at.outer, p.outer_step);
  p.inner_chunks = divide_up(at.inner, p.inner_step);
  return p;
}

}  // namespace normwright
