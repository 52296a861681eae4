#include "schedule.h"

#include <pthread.h>

#include <cmath>

#include "call.h"
#include "pages.h"

namespace normwright {

namespace {
bool forked_child = false;
[[maybe_unused]] const int watching = pthread_atfork(nullptr, nullptr, [] { forked_child = true; });
}  // namespace
bool is_forked_child() { return forked_child; }
void trust_fork() { forked_child = false; }

// After all channels are known, so that a batch is left out whole. Finite as the number that would be remembered.
bool move(const Running& running, const Saved& saved, int64_t channels, double n) {
  const auto finite = [](const MutableReals& to, double value) {
    return std::isfinite(to.is_double ? value : double(float(value)));
  };
  const auto var = [&](int64_t c) { return saved.m2[c] / (running.biased ? n : n - 1); };
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

double merge_rows(const double* rows, int64_t n, int64_t stride, int64_t channels, double eps, Saved to) {
  double count = 0;
  int64_t most = 0;
  for (int64_t k = 0; k < n; ++k) {
    count += rows[k * stride];
    if (rows[k * stride] > rows[most * stride]) most = k;
  }
  const double some = count < 1 ? 1 : count;
  for (int64_t c = 0; c < channels; ++c) {
    const auto mean = [&](int64_t k) { return rows[k * stride + 1 + c]; };
    const auto tail = [&](int64_t k) { return rows[k * stride + 1 + channels + c]; };
    const auto or_zero = [](double value) { return std::isfinite(value) ? value : 0; };
    const double pivot = or_zero(mean(most)), pivot_tail = tail(most);  // infinity is no place to look from
    const auto away = [&](int64_t k) { return rows[k * stride] > 0 ? (mean(k) - pivot) + (tail(k) - pivot_tail) : 0; };
    double shift = 0, m2 = 0;
    for (int64_t k = 0; k < n; ++k) shift += rows[k * stride] * away(k);
    shift /= some;
    for (int64_t k = 0; k < n; ++k) {
      const double d = away(k) - shift;
      m2 += rows[k * stride + 1 + 2 * channels + c] + rows[k * stride] * (d * d);
    }
    to.mean[c] = pivot + shift;
    to.mean_tail[c] = or_zero(((pivot - to.mean[c]) + shift) + pivot_tail);
    to.m2[c] = m2;
    to.rstd[c] = 1 / std::sqrt(m2 / some + eps);
  }
  return count;
}

namespace {

const auto nothing = [](auto...) {};

template <class D>
void expect_writes(const D* output, Layout at) {
  normwright::expect_writes(const_cast<D*>(output), at.count() * at.channels * int64_t(sizeof(D)));
}

// Statistics from outside, in the form of a batch's own.
Statistics statistics_of(const Fixed& by, int64_t channels, Statistics to) {
  by.mean.read(0, channels, to.mean);
  by.var.read(0, channels, to.m2);
  for (int64_t c = 0; c < channels; ++c) {
    to.mean_tail[c] = 0;
    to.rstd[c] = 1 / std::sqrt(to.m2[c] + by.eps);
  }
  return to;
}

// Bytes of one value that a reduction of gradients reads.
template <class D>
int64_t bytes_read(const After<D>& after) {
  return (after.residual && !after.bits ? 3 : 2) * int64_t(sizeof(D));
}

}  // namespace

template <class D>
void moments_only(const D* x, Layout at, Saved saved) {
  const Call<D> call(at, {});
  reduce_gap_apply(
      call.plan, sizeof(D), nothing, [&](Tile t, int64_t k) { call.reduce_moments(x, t, k); },
      [&](int64_t c0, int64_t c1) { call.merge_moments(c0, c1, 1, saved); }, nothing);
}

template <class D>
bool forward_train(const D* x, Layout at, D* y, Affine affine, double eps, Saved saved, Running running, After<D> after) {
  expect_writes(y, at);
  const Call<D> call(at, after);
  const auto gap = [&](int64_t c0, int64_t c1) {
    call.merge_moments(c0, c1, eps, saved);
    call.forward_gap(c0, c1, saved, affine);
  };
  reduce_gap_apply(
      call.plan, sizeof(D), nothing, [&](Tile t, int64_t k) { call.reduce_moments(x, t, k); }, gap,
      [&](Tile t) { call.apply(x, y, t); });
  return move(running, saved, at.channels, double(at.count()));
}

template <class D>
void backward_train(const D* x, Layout at, const D* dy, Affine affine, Saved saved, Gradients<D> out, After<D> after) {
  expect_writes(out.dx, at);
  expect_writes(after.dresidual, at);
  const Call<D> call(at, after);
  const auto before = [&](int64_t c0, int64_t c1) { call.forward_gap(c0, c1, saved, affine); };
  const auto gap = [&](int64_t c0, int64_t c1) { call.backward_gap(c0, c1, saved, out.dgamma, out.dbeta); };
  const auto reduce = [&](Tile t, int64_t k) { call.reduce_grads(x, dy, t, k); };
  const auto apply = [&](Tile t) { call.grad_apply(x, dy, out.dx, t, false); };
  if (out.dx) reduce_gap_apply(call.plan, bytes_read(after), before, reduce, gap, apply);
  else reduce_gap_apply(call.plan, bytes_read(after), before, reduce, gap, nothing);
}

template <class D>
void forward_by(const D* x, Layout at, D* y, Affine affine, Saved saved, After<D> after) {
  expect_writes(y, at);
  const Call<D> call(at, after);
  call.forward_gap(0, at.channels, saved, affine);
  each_tile(call.plan, [&](Tile t) { call.apply(x, y, t); });
}

template <class D>
void backward_sums(const D* x, Layout at, const D* dy, Affine affine, Saved saved, double* dbeta, double* dgamma, After<D> after) {
  after.dresidual = nullptr;
  const Call<D> call(at, after);
  call.forward_gap(0, at.channels, saved, affine);
  reduce_gap_apply(
      call.plan, bytes_read(after), nothing, [&](Tile t, int64_t k) { call.reduce_grads(x, dy, t, k); },
      [&](int64_t c0, int64_t c1) { call.backward_gap(c0, c1, saved, {dgamma, true}, {dbeta, true}); }, nothing);
}

template <class D>
void backward_by(const D* x, Layout at, const D* dy, Affine affine, Saved saved, const double* dbeta, const double* dgamma,
                 double n, D* dx, After<D> after) {
  expect_writes(dx, at);
  expect_writes(after.dresidual, at);
  const Call<D> call(at, after);
  call.forward_gap(0, at.channels, saved, affine);
  call.backward_gap_by(dbeta, dgamma, n, saved);
  each_tile(call.plan, [&](Tile t) { call.grad_apply(x, dy, dx, t, false); });
}

template <class D>
void forward_fixed(const D* x, Layout at, D* y, Affine affine, Fixed by, After<D> after) {
  expect_writes(y, at);
  const Call<D> call(at, after);
  call.forward_gap(0, at.channels, statistics_of(by, at.channels, call.scratch.statistics()), affine);
  each_tile(call.plan, [&](Tile t) { call.apply(x, y, t); });
}

template <class D>
void backward_fixed(const D* x, Layout at, const D* dy, Affine affine, Fixed by, Gradients<D> out, After<D> after) {
  expect_writes(out.dx, at);
  expect_writes(after.dresidual, at);
  const Call<D> call(at, after);
  const Statistics statistics = statistics_of(by, at.channels, call.scratch.statistics());
  call.forward_gap(0, at.channels, statistics, affine);
  const auto reduce = [&](Tile t, int64_t k) { call.reduce_grads(x, dy, t, k); };
  const auto gap = [&](int64_t c0, int64_t c1) { call.backward_gap(c0, c1, statistics, out.dgamma, out.dbeta); };
  const auto apply = [&](Tile t) { call.grad_apply(x, dy, out.dx, t, true); };
  const bool sums = out.dgamma.data || out.dbeta.data;
  if (sums && out.dx) reduce_gap_apply(call.plan, bytes_read(after), nothing, reduce, gap, apply);
  else if (sums) reduce_gap_apply(call.plan, bytes_read(after), nothing, reduce, gap, nothing);
  else if (out.dx) each_tile(call.plan, apply);
}

template <class D>
int64_t bits_bytes(Layout at) {
  if (at.count() * at.channels == 0) return 0;
  const Plan plan = make_plan(at);
  using T = Computed<D>;
  return (bit_words<T>(dense(plan.at)) + bit_words<T>(dense(plan.rest))) * int64_t(sizeof(Word<T>));
}

void memory_floor(const float* a, const float* b, float* c, float* d, int64_t n, bool stream) {
  const Isa& run = active_isa();
#pragma omp parallel
  {
    const int64_t step = divide_up(round_up(n, 16) / 16, omp_get_num_threads()) * 16;
    const int64_t first = std::min(n, step * omp_get_thread_num()), some = std::min(step, n - first);
    if (d) run.quad(a + first, b + first, c + first, d + first, some, stream);
    else if (b) run.triad(a + first, b + first, c + first, some, stream);
    else run.copy(a + first, c + first, some, stream);
  }
}

#define NORMWRIGHT_SCHEDULES(D)                                                                               \
  template void moments_only(const D*, Layout, Saved);                                                        \
  template bool forward_train(const D*, Layout, D*, Affine, double, Saved, Running, After<D>);                \
  template void backward_train(const D*, Layout, const D*, Affine, Saved, Gradients<D>, After<D>);            \
  template void forward_by(const D*, Layout, D*, Affine, Saved, After<D>);                                    \
  template void backward_sums(const D*, Layout, const D*, Affine, Saved, double*, double*, After<D>);         \
  template void backward_by(const D*, Layout, const D*, Affine, Saved, const double*, const double*, double,  \
                            D*, After<D>);                                                                    \
  template void forward_fixed(const D*, Layout, D*, Affine, Fixed, After<D>);                                 \
  template void backward_fixed(const D*, Layout, const D*, Affine, Fixed, Gradients<D>, After<D>);            \
  template int64_t bits_bytes<D>(Layout);
NORMWRIGHT_SCHEDULES(float)
NORMWRIGHT_SCHEDULES(double)
NORMWRIGHT_SCHEDULES(bf16)
NORMWRIGHT_SCHEDULES(f16)

}  // namespace normwright
