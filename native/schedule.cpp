#include "schedule.h"

#include <pthread.h>

#include <cmath>
#include <memory>
#include <vector>

#include "threads.h"

namespace normwright {

namespace {
bool forked_child = false;
[[maybe_unused]] const int watching = pthread_atfork(nullptr, nullptr, [] { forked_child = true; });
}  // namespace
bool is_forked_child() { return forked_child; }

namespace {

// As in pack.inl, which this file cannot share: that one is compiled for each instruction set.
double total(double value, double tail) { return std::isfinite(tail) ? value + tail : value; }

// Scratch of one call: the sums of every chunk, of the rest, of all folded rows and of the whole; per-channel numbers.
template <class T>
class Scratch {
 public:
  Scratch(const Plan& plan, int numbers)
      : channels_(plan.at.channels),
        chunks_(plan.chunks()),
        memory_(new double[size_t(4 * channels_ * (chunks_ + 3) + numbers * channels_)]) {
    for (int64_t k = 0; k < chunks_; ++k) {
      const Tile tile = plan.tile(k, 0);
      parts_.push_back({sums(k), double((tile.o1 - tile.o0) * (tile.i1 - tile.i0))});
    }
    if (plan.repeat == 1) return;
    for (int64_t j = 0; j < plan.repeat; ++j) {
      Sums s = folded();
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
  T* numbers(int k) const {
    return reinterpret_cast<T*>(memory_.get() + 4 * channels_ * (chunks_ + 3)) + k * channels_;
  }
  // The sums of real channels [c0, c1), into whole(). Folded rows are merged first, all of them.
  template <class Merge>
  void merge(Merge one, int64_t c0, int64_t c1) const {
    if (repeats_.empty()) {
      one(parts_.data(), int64_t(parts_.size()), whole(), c0, c1);
    } else if (c0 < c1) {
      one(parts_.data(), int64_t(parts_.size()), folded(), int64_t(0), channels_);
      one(repeats_.data(), int64_t(repeats_.size()), whole(), c0, c1);
    }
  }

 private:
  int64_t channels_, chunks_;
  std::unique_ptr<double[]> memory_;
  std::vector<Part> parts_, repeats_;
};

// One number per channel, repeated where rows were folded.
template <class T>
void put(const Plan& plan, T* numbers, int64_t c, double value) {
  for (int64_t j = 0; j < plan.repeat; ++j) numbers[c + j * plan.channels()] = T(value);
}

// The mean as center (what x is compared with, exact in T) and the little that is missing.
template <class T>
struct Center {
  T center;
  double missing;
  Center(double mean, double mean_tail) : center(T(mean)), missing((mean - double(center)) + mean_tail) {
    if (!std::isfinite(missing)) missing = 0;
  }
};

template <class T>
void put_apply_numbers(const Plan& plan, const Scratch<T>& s, int64_t c, Center<T> mean, double scale, double beta) {
  put(plan, s.numbers(0), c, double(mean.center));
  put(plan, s.numbers(1), c, scale);
  put(plan, s.numbers(2), c, beta - mean.missing * double(T(scale)));
}

template <class T>
void put_x_hat_numbers(const Plan& plan, const Scratch<T>& s, int64_t c, Center<T> mean, double rstd) {
  put(plan, s.numbers(0), c, double(mean.center));
  put(plan, s.numbers(1), c, rstd);
}

// Outputs that will have left the cache before anybody reads them are written past it.
bool worth_streaming(int64_t bytes) { return bytes > last_level_cache_bytes() / 2; }

Layout dense(Layout at) { return {at.outer, at.channels, at.inner, at.channels * at.inner}; }

// Everything that the schedules below share: the plan, the active kernels, scratch.
template <class T>
struct Call {
  Plan plan;
  const Kernels<T>& run;
  Scratch<T> scratch;
  Layout to, rest_to;
  bool stream;

  Call(Layout at, int numbers)
      : plan(make_plan(at)),
        run(active_isa().kernels<T>()),
        scratch(plan, numbers),
        to(dense(plan.at)),
        rest_to(dense(plan.rest)),
        stream(worth_streaming(2 * at.count() * at.channels * int64_t(sizeof(T)))) {}

  // The folded rows' remainder lies behind the rest of the data.
  const T* rest(const T* p) const { return p + plan.at.outer * plan.at.stride; }
  T* rest(T* p) const { return p + plan.at.outer * to.stride; }
  bool has_rest() const { return plan.rest.outer > 0; }
  ApplyNumbers<T> apply_numbers() const { return {scratch.numbers(0), scratch.numbers(1), scratch.numbers(2)}; }
  XHatNumbers<T> x_hat_numbers() const { return {scratch.numbers(0), scratch.numbers(1)}; }

  // A remainder of rows is small: whoever has the first tile takes it along.
  bool first(const Tile& tile) const { return tile.c0 == 0 && tile.o0 == 0 && tile.i0 == 0; }

  void reduce_moments(const T* x, const Tile& tile, int64_t chunk) const {
    run.moments(x, plan.at, tile, scratch.sums(chunk));
    if (first(tile) && has_rest()) run.moments(rest(x), plan.rest, plan.rest_tile(), scratch.rest());
  }
  void reduce_grads(const T* x, const T* dy, const Tile& tile, int64_t chunk) const {
    run.grad_sums(x, plan.at, dy, to, tile, x_hat_numbers(), scratch.sums(chunk));
    if (first(tile) && has_rest())
      run.grad_sums(rest(x), plan.rest, rest(dy), rest_to, plan.rest_tile(), x_hat_numbers(), scratch.rest());
  }
  void apply(const T* x, T* y, const Tile& tile, const ApplyNumbers<T>& n) const {
    run.apply(x, plan.at, y, to, tile, n, stream);
    if (first(tile) && has_rest()) run.apply(rest(x), plan.rest, rest(y), rest_to, plan.rest_tile(), n, false);
  }
  void grad_apply(const T* x, const T* dy, T* dx, const Tile& tile, const GradNumbers<T>& g) const {
    run.grad_apply(x, plan.at, dy, dx, to, tile, g, stream);
    if (first(tile) && has_rest())
      run.grad_apply(rest(x), plan.rest, rest(dy), rest(dx), rest_to, plan.rest_tile(), g, false);
  }

  // The mean, its tail and m2 of channels [c0, c1). n * mean may round; what is left of the sum after taking the
  // rounded product away, exactly, is the mean's tail.
  void merge_moments(int64_t c0, int64_t c1, const Saved& saved) const {
    scratch.merge(active_isa().merge_moments, c0, c1);
    const Sums whole = scratch.whole();
    const double n = double(plan.at.count() * plan.repeat + plan.rest.outer);
    for (int64_t c = c0; c < c1; ++c) {
      const double mean = total(whole.first[c], whole.first_tail[c]) / n;
      const double mean_tail = (std::fma(-n, mean, whole.first[c]) + whole.first_tail[c]) / n;
      saved.mean[c] = mean;
      saved.mean_tail[c] = std::isfinite(mean_tail) ? mean_tail : 0;
      saved.m2[c] = total(whole.second[c], whole.second_tail[c]);
    }
  }
  // dbeta and dgamma of channels [c0, c1). The sums know x_hat but for what the center misses of the mean.
  template <class Mean, class Each>
  void merge_grads(int64_t c0, int64_t c1, Mean mean, Each each) const {
    scratch.merge(active_isa().merge_sums, c0, c1);
    const Sums whole = scratch.whole();
    for (int64_t c = c0; c < c1; ++c) {
      const double dbeta = total(whole.first[c], whole.first_tail[c]);
      const double dgamma = total(whole.second[c], whole.second_tail[c]);
      each(c, dbeta, dgamma - mean(c).missing * double(scratch.numbers(1)[c]) * dbeta);
    }
  }
};

// After all channels are known, so that a batch is left out whole. Finite as the number that would be remembered.
bool move(const Running& running, const Saved& saved, int64_t channels, double n) {
  const auto finite = [](const MutableReals& to, double value) {
    return std::isfinite(to.is_double ? value : double(float(value)));
  };
  const auto var = [&](int64_t c) { return saved.m2[c] / (n - 1); };
  if (running.guarded)
    for (int64_t c = 0; c < channels; ++c)
      if (!finite(running.mean, saved.mean[c]) || !finite(running.var, var(c))) return false;
  if (running.counter) ++*running.counter;
  const double rate = running.cumulative && running.counter ? 1 / double(*running.counter) : running.rate;
  const auto step = [&](const MutableReals& to, int64_t c, double batch) {
    to.set(c, (1 - rate) * Reals{to.data, to.is_double, 0}[c] + rate * batch);
  };
  for (int64_t c = 0; c < channels; ++c) {
    step(running.mean, c, saved.mean[c]);
    step(running.var, c, var(c));
  }
  return true;
}

const auto nothing = [](auto...) {};

}  // namespace

template <class T>
void moments_only(const T* x, Layout at, Saved saved) {
  Call<T> call(at, 0);
  const auto gap = [&](int64_t c0, int64_t c1) {
    call.merge_moments(c0, c1, saved);
  };
  reduce_gap_apply(
      call.plan, sizeof(T), nothing, [&](Tile t, int64_t k) { call.reduce_moments(x, t, k); }, gap, nothing);
}

template <class T>
bool forward_train(const T* x, Layout at, T* y, Reals gamma, Reals beta, double eps, Saved saved, Running running) {
  Call<T> call(at, 3);
  const double n = double(at.count());
  const auto gap = [&](int64_t c0, int64_t c1) {
    call.merge_moments(c0, c1, saved);
    for (int64_t c = c0; c < c1; ++c) {
      saved.rstd[c] = 1 / std::sqrt(saved.m2[c] / n + eps);
      put_apply_numbers(call.plan, call.scratch, c, Center<T>(saved.mean[c], saved.mean_tail[c]),
                        gamma[c] * saved.rstd[c], beta[c]);
    }
  };
  const ApplyNumbers<T> numbers = call.apply_numbers();
  reduce_gap_apply(
      call.plan, 2 * sizeof(T), nothing, [&](Tile t, int64_t k) { call.reduce_moments(x, t, k); }, gap,
      [&](Tile t) { call.apply(x, y, t, numbers); });
  return move(running, saved, at.channels, n);
}

template <class T>
void backward_train(const T* x, Layout at, const T* dy, T* dx, Reals gamma, Saved saved, MutableReals dgamma,
                    MutableReals dbeta) {
  Call<T> call(at, 5);
  const double n = double(at.count());
  const GradNumbers<T> numbers{call.scratch.numbers(0), call.scratch.numbers(2), call.scratch.numbers(3),
                               call.scratch.numbers(4)};
  const auto mean = [&](int64_t c) { return Center<T>(saved.mean[c], saved.mean_tail[c]); };
  const auto before = [&](int64_t c0, int64_t c1) {
    for (int64_t c = c0; c < c1; ++c) put_x_hat_numbers(call.plan, call.scratch, c, mean(c), saved.rstd[c]);
  };
  const auto gap = [&](int64_t c0, int64_t c1) {
    call.merge_grads(c0, c1, mean, [&](int64_t c, double b, double g) {
      const double slope = -saved.rstd[c] * (g / n);
      dbeta.set(c, b);
      dgamma.set(c, g);
      put(call.plan, call.scratch.numbers(2), c, gamma[c] * saved.rstd[c]);
      put(call.plan, call.scratch.numbers(3), c, slope);
      put(call.plan, call.scratch.numbers(4), c, -b / n - mean(c).missing * double(T(slope)));
    });
  };
  const auto reduce = [&](Tile t, int64_t k) { call.reduce_grads(x, dy, t, k); };
  if (dx)
    reduce_gap_apply(call.plan, 3 * sizeof(T), before, reduce, gap,
                     [&](Tile t) { call.grad_apply(x, dy, dx, t, numbers); });
  else
    reduce_gap_apply(call.plan, 2 * sizeof(T), before, reduce, gap, nothing);
}

template <class T>
void forward_fixed(const T* x, Layout at, T* y, Reals gamma, Reals beta, Reals mean, Reals var, double eps) {
  Call<T> call(at, 3);
  for (int64_t c = 0; c < at.channels; ++c)
    put_apply_numbers(call.plan, call.scratch, c, Center<T>(mean[c], 0), gamma[c] / std::sqrt(var[c] + eps), beta[c]);
  const ApplyNumbers<T> numbers = call.apply_numbers();
  each_tile(call.plan, [&](Tile t) { call.apply(x, y, t, numbers); });
}

template <class T>
void backward_fixed(const T* x, Layout at, const T* dy, T* dx, Reals gamma, Reals mean, Reals var, double eps,
                    MutableReals dgamma, MutableReals dbeta) {
  Call<T> call(at, 6);
  const ApplyNumbers<T> numbers{call.scratch.numbers(3), call.scratch.numbers(4), call.scratch.numbers(5)};
  for (int64_t c = 0; c < at.channels; ++c) {
    const double rstd = 1 / std::sqrt(var[c] + eps);
    put_x_hat_numbers(call.plan, call.scratch, c, Center<T>(mean[c], 0), rstd);
    // dx = gamma * rstd * dy is an apply too.
    put(call.plan, call.scratch.numbers(3), c, 0);
    put(call.plan, call.scratch.numbers(4), c, gamma[c] * rstd);
    put(call.plan, call.scratch.numbers(5), c, -0.0);
  }
  const auto reduce = [&](Tile t, int64_t k) { call.reduce_grads(x, dy, t, k); };
  const auto gap = [&](int64_t c0, int64_t c1) {
    const auto center = [&](int64_t c) { return Center<T>(mean[c], 0); };
    call.merge_grads(c0, c1, center, [&](int64_t c, double b, double g) {
      dbeta.set(c, b);
      dgamma.set(c, g);
    });
  };
  const auto apply = [&](Tile t) {
    call.run.apply(dy, call.to, dx, call.to, t, numbers, call.stream);
    if (call.first(t) && call.has_rest())
      call.run.apply(call.rest(dy), call.rest_to, call.rest(dx), call.rest_to, call.plan.rest_tile(), numbers, false);
  };
  const bool sums = dgamma.data || dbeta.data;
  if (sums && dx) reduce_gap_apply(call.plan, 3 * sizeof(T), nothing, reduce, gap, apply);
  else if (sums) reduce_gap_apply(call.plan, 2 * sizeof(T), nothing, reduce, gap, nothing);
  else if (dx) each_tile(call.plan, apply);
}

void memory_floor(const float* a, const float* b, float* c, int64_t n, bool stream) {
  const Kernels<float>& run = active_isa().f32;
#pragma omp parallel
  {
    const int64_t step = divide_up(round_up(n, 16) / 16, omp_get_num_threads()) * 16;
    const int64_t first = std::min(n, step * omp_get_thread_num()), some = std::min(step, n - first);
    if (b) run.triad(a + first, b + first, c + first, some, stream);
    else run.copy(a + first, c + first, some, stream);
  }
}

#define NORMWRIGHT_SCHEDULES(T)                                                                                        \
  template void moments_only(const T*, Layout, Saved);                                                                 \
  template bool forward_train(const T*, Layout, T*, Reals, Reals, double, Saved, Running);                             \
  template void backward_train(const T*, Layout, const T*, T*, Reals, Saved, MutableReals, MutableReals);              \
  template void forward_fixed(const T*, Layout, T*, Reals, Reals, Reals, Reals, double);                               \
  template void backward_fixed(const T*, Layout, const T*, T*, Reals, Reals, Reals, double, MutableReals, MutableReals);
NORMWRIGHT_SCHEDULES(float)
NORMWRIGHT_SCHEDULES(double)

}  // namespace normwright
