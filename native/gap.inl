// The gaps' arithmetic: a few numbers of each channel, many channels at once.

INLINE double or_zero(double value) { return value - value == 0 ? value : 0; }

// n * mean may round; what is left of the sum after taking the rounded product away, exactly, is the mean's tail.
void statistics(Sums whole, double n, double eps, int64_t channels, Statistics out) {
  for (int64_t c = 0; c < channels; ++c) {
    const double mean = total(whole.first[c], whole.first_tail[c]) / n;
    out.mean[c] = mean;
    out.mean_tail[c] = or_zero((__builtin_fma(-n, mean, whole.first[c]) + whole.first_tail[c]) / n);
    out.m2[c] = total(whole.second[c], whole.second_tail[c]);
    out.rstd[c] = 1 / __builtin_sqrt(out.m2[c] / n + eps);
  }
}

template <class T>
void forward_gap(Statistics s, Terms t, int64_t channels, MutableNumbers<T> to) {
  for (int64_t c = 0; c < channels; ++c) {
    const double mean = s.mean[c], rstd = s.rstd[c];
    const T center = T(mean), scale = T(t.gamma[c] * rstd);
    const double missing = or_zero((mean - double(center)) + s.mean_tail[c]);
    t.missing[c] = missing;
    to.center[c] = center;
    to.scale[c] = scale;
    to.shift[c] = T(t.beta[c] - missing * double(scale));
    to.rstd[c] = T(rstd);
  }
}

// The sums know x_hat but for what the center misses of the mean.
template <class T>
void backward_gap(Sums whole, Statistics s, Terms t, double n, int64_t channels, MutableNumbers<T> to) {
  for (int64_t c = 0; c < channels; ++c) {
    const double dbeta = total(whole.first[c], whole.first_tail[c]), rstd = s.rstd[c], missing = t.missing[c];
    const double dgamma = total(whole.second[c], whole.second_tail[c]) - missing * double(T(rstd)) * dbeta;
    const double slope = -rstd * (dgamma / n);
    t.dbeta[c] = dbeta;
    t.dgamma[c] = dgamma;
    to.slope[c] = T(slope);
    to.level[c] = T(-dbeta / n - missing * double(T(slope)));
  }
}
