// One call: its plan, its kernels, and scratch for sums and per-channel numbers.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "schedule.h"
#include "threads.h"

namespace normwright {

// The sums of every chunk, of the rest, of all folded columns (twice, where they are turned) and of the whole;
// per-channel numbers.
template <class T>
class Scratch {
 public:
  enum Row { kCenter, kScale, kShift, kRstd, kSlope, kLevel, kRows };
  enum Double { kGamma, kBeta, kMissing, kDgamma, kDbeta, kMean, kMeanTail, kM2, kRstdOf, kDoubles };

  explicit Scratch(const Plan& plan)
      : channels_(plan.at.channels),
        chunks_(plan.chunks()),
        memory_(new double[size_t((4 * (chunks_ + 4) + kRows + kDoubles) * channels_)]),
        plan_(plan) {
    for (int64_t k = 0; k < chunks_; ++k) {
      const Tile tile = plan.tile(k, 0);
      parts_.push_back({sums(k), double((tile.o1 - tile.o0) * (tile.i1 - tile.i0))});
    }
    if (plan.repeat == 1) return;
    for (int64_t j = 0; j < plan.repeat; ++j) {
      Sums s = sums(plan.adjacent ? chunks_ + 3 : chunks_ + 1);
      for (double** p : {&s.first, &s.first_tail, &s.second, &s.second_tail}) *p += j * plan.channels();
      repeats_.push_back({s, double(plan.at.count())});
    }
    if (plan.rest.outer > 0) repeats_.push_back({rest(), double(plan.rest.outer)});
  }
  Sums sums(int64_t chunk) const {
    double* p = memory_.get() + 4 * channels_ * chunk;
    return {p, p + channels_, p + 2 * channels_, p + 3 * channels_};
  }
  Sums rest() const { return sums(chunks_); }
  Sums folded() const { return sums(chunks_ + 1); }
  Sums whole() const { return sums(chunks_ + 2); }
  T* numbers(Row row) const {
    return reinterpret_cast<T*>(memory_.get() + 4 * channels_ * (chunks_ + 4)) + row * channels_;
  }
  double* doubles(Double row) const { return memory_.get() + (4 * (chunks_ + 4) + kRows + row) * channels_; }
  Terms terms() const { return {doubles(kGamma), doubles(kBeta), doubles(kMissing), doubles(kDgamma), doubles(kDbeta)}; }
  // Room for statistics that nobody keeps.
  Statistics statistics() const { return {doubles(kMean), doubles(kMeanTail), doubles(kM2), doubles(kRstdOf)}; }
  // The sums of real channels [c0, c1), into whole(). Folded rows are merged first, all of them.
  template <class Merge>
  void merge(Merge one, int64_t c0, int64_t c1) const {
    if (repeats_.empty()) {
      one(parts_.data(), int64_t(parts_.size()), whole(), c0, c1);
    } else if (c0 < c1) {
      one(parts_.data(), int64_t(parts_.size()), folded(), int64_t(0), channels_);
      if (plan_.adjacent) turn();
      one(repeats_.data(), int64_t(repeats_.size()), whole(), c0, c1);
    }
  }

 private:
  // From columns of a channel side by side to channels side by side.
  void turn() const {
    const Sums from = folded(), to = sums(chunks_ + 3);
    const std::pair<const double*, double*> rows[] = {{from.first, to.first}, {from.first_tail, to.first_tail},
                                                      {from.second, to.second}, {from.second_tail, to.second_tail}};
    for (const auto& [a, b] : rows)
      for (int64_t c = 0; c < plan_.channels(); ++c)
        for (int64_t j = 0; j < plan_.repeat; ++j) b[j * plan_.channels() + c] = a[plan_.column(c, j)];
  }

  int64_t channels_, chunks_;
  std::unique_ptr<double[]> memory_;
  const Plan& plan_;
  std::vector<Part> parts_, repeats_;
};

// Outputs that will have left the cache before anybody reads them are written past it.
inline bool worth_streaming(int64_t bytes) { return bytes > last_level_cache_bytes() / 2; }

inline Layout dense(Layout at) { return {at.outer, at.channels, at.inner, at.channels * at.inner}; }

// How many words of bits a dense layout takes.
template <class T>
int64_t bit_words(Layout at) {
  const int64_t run = at.inner == 1 ? at.channels : at.inner, runs = at.inner == 1 ? at.outer : at.outer * at.channels;
  return runs * words_in(run, sizeof(T));
}

// Everything that the schedules share.
template <class D>
struct Call {
  using T = Computed<D>;
  using Row = typename Scratch<T>::Row;
  Plan plan;
  const Kernels<D>& run;
  Scratch<T> scratch;
  Layout to, rest_to;
  After<D> after, rest_after;
  bool stream;

  Call(Layout at, After<D> follows)
      : plan(make_plan(at)),
        run(kernels_of<D>(active_isa())),
        scratch(plan),
        to(dense(plan.at)),
        rest_to(dense(plan.rest)),
        after(follows),
        rest_after(follows),
        stream(worth_streaming(2 * at.count() * at.channels * int64_t(sizeof(D)))) {
    if (after.residual) rest_after.residual = rest(after.residual);
    if (after.dresidual) rest_after.dresidual = rest(after.dresidual);
    if (after.bits) rest_after.bits = after.bits + bit_words<T>(to);
  }

  // The folded rows' remainder lies behind the rest of the data.
  const D* rest_of_x(const D* x) const { return x + plan.at.outer * plan.at.stride; }
  const D* rest(const D* p) const { return p + plan.at.outer * to.stride; }
  D* rest(D* p) const { return p + plan.at.outer * to.stride; }
  // A remainder of rows is small: whoever has the first tile takes it along.
  bool takes_rest(const Tile& tile) const { return plan.rest.outer > 0 && tile.c0 == 0 && tile.o0 == 0 && tile.i0 == 0; }

  // slope null: fixed statistics.
  Numbers<T> numbers(bool fixed = false) const {
    using S = Scratch<T>;
    return {scratch.numbers(S::kCenter), scratch.numbers(S::kScale), scratch.numbers(S::kShift), scratch.numbers(S::kRstd),
            fixed ? nullptr : scratch.numbers(S::kSlope), scratch.numbers(S::kLevel)};
  }
  MutableNumbers<T> mutable_numbers() const {
    using S = Scratch<T>;
    return {scratch.numbers(S::kCenter), scratch.numbers(S::kScale), scratch.numbers(S::kShift), scratch.numbers(S::kRstd),
            scratch.numbers(S::kSlope), scratch.numbers(S::kLevel)};
  }
  // What z and x_hat are made of, of channels [c0, c1): the same numbers in forward and in backward.
  void forward_gap(int64_t c0, int64_t c1, const Statistics& s, const Affine& affine) const {
    using S = Scratch<T>;
    if (c0 == c1) return;
    affine.gamma.read(c0, c1, scratch.doubles(S::kGamma));
    affine.beta.read(c0, c1, scratch.doubles(S::kBeta));
    gaps_of<T>(active_isa()).forward(from(s, c0), from(scratch.terms(), c0), c1 - c0, from(mutable_numbers(), c0));
    for (Row row : {S::kCenter, S::kScale, S::kShift, S::kRstd}) repeat(row);
  }
  // dgamma and dbeta of channels [c0, c1), whose sums are complete, and what dx needs.
  void backward_gap(int64_t c0, int64_t c1, const Statistics& s, const MutableReals& dgamma, const MutableReals& dbeta) const {
    using S = Scratch<T>;
    if (c0 == c1) return;
    scratch.merge(active_isa().merge_sums, c0, c1);
    gaps_of<T>(active_isa()).backward(from(scratch.whole(), c0), from(s, c0), from(scratch.terms(), c0), count(), c1 - c0,
                                      from(mutable_numbers(), c0));
    dgamma.write(c0, c1, scratch.doubles(S::kDgamma));
    dbeta.write(c0, c1, scratch.doubles(S::kDbeta));
    for (Row row : {S::kSlope, S::kLevel}) repeat(row);
  }
  // What dx needs, of all channels, from sums over n values that are known already.
  void backward_gap_by(const double* dbeta, const double* dgamma, double n, const Statistics& s) const {
    using S = Scratch<T>;
    const Sums whole = scratch.whole();
    const double* missing = scratch.doubles(S::kMissing);
    for (int64_t c = 0; c < plan.channels(); ++c) {
      whole.first[c] = dbeta[c];
      whole.second[c] = dgamma[c] + missing[c] * double(T(s.rstd[c])) * dbeta[c];  // which the gap takes off
      whole.first_tail[c] = whole.second_tail[c] = 0;
    }
    gaps_of<T>(active_isa()).backward(whole, s, scratch.terms(), n, plan.channels(), mutable_numbers());
    for (Row row : {S::kSlope, S::kLevel}) repeat(row);
  }
  // The statistics of channels [c0, c1), whose sums are complete.
  void merge_moments(int64_t c0, int64_t c1, double eps, const Statistics& to) const {
    if (c0 == c1) return;
    scratch.merge(active_isa().merge_moments, c0, c1);
    active_isa().statistics(from(scratch.whole(), c0), count(), eps, c1 - c0, from(to, c0));
  }

  void reduce_moments(const D* x, const Tile& tile, int64_t chunk) const {
    run.moments(x, plan.at, tile, scratch.sums(chunk));
    if (takes_rest(tile)) run.moments(rest_of_x(x), plan.rest, plan.rest_tile(), scratch.rest());
  }
  void reduce_grads(const D* x, const D* dy, const Tile& tile, int64_t chunk) const {
    run.grad_sums(x, plan.at, dy, to, tile, numbers(), after, scratch.sums(chunk));
    if (takes_rest(tile))
      run.grad_sums(rest_of_x(x), plan.rest, rest(dy), rest_to, plan.rest_tile(), numbers(), rest_after, scratch.rest());
  }
  void apply(const D* x, D* y, const Tile& tile) const {
    run.apply(x, plan.at, y, to, tile, numbers(), after, stream);
    if (takes_rest(tile))
      run.apply(rest_of_x(x), plan.rest, rest(y), rest_to, plan.rest_tile(), numbers(), rest_after, false);
  }
  void grad_apply(const D* x, const D* dy, D* dx, const Tile& tile, bool fixed) const {
    run.grad_apply(x, plan.at, dy, dx, to, tile, numbers(fixed), after, stream);
    if (takes_rest(tile))
      run.grad_apply(rest_of_x(x), plan.rest, rest(dy), rest(dx), rest_to, plan.rest_tile(), numbers(fixed), rest_after, false);
  }

 private:
  double count() const { return double(plan.at.count() * plan.repeat + plan.rest.outer); }

  // Numbers of channels, as those of columns, where rows or maps were folded; they are all there then.
  void repeat(Row row) const {
    if (plan.repeat == 1) return;
    T* to = scratch.numbers(row);
    for (int64_t c = plan.channels() - 1; c >= 0; --c)
      for (int64_t j = plan.repeat - 1; j >= 0; --j) to[plan.column(c, j)] = to[c];
  }

  static Statistics from(Statistics s, int64_t c) { return {s.mean + c, s.mean_tail + c, s.m2 + c, s.rstd + c}; }
  static Terms from(Terms t, int64_t c) { return {t.gamma + c, t.beta + c, t.missing + c, t.dgamma + c, t.dbeta + c}; }
  static Sums from(Sums s, int64_t c) { return {s.first + c, s.first_tail + c, s.second + c, s.second_tail + c}; }
  static MutableNumbers<T> from(MutableNumbers<T> n, int64_t c) {
    return {n.center + c, n.scale + c, n.shift + c, n.rstd + c, n.slope + c, n.level + c};
  }
};

}  // namespace normwright
