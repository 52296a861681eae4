// What memory allows: forward must read one array and write one (copy), backward read two and write one (triad).

template <class T, bool Stream>
INLINE void copy_run(const T* a, T* b, int64_t n) {
  using P = Pack<T>;
  int64_t i = 0;
  for (; i + P::size <= n; i += P::size) P::load(a + i).template put<Stream>(b + i);
  for (; i < n; ++i) b[i] = a[i];
}

template <class T, bool Stream>
INLINE void triad_run(const T* a, const T* b, T* c, int64_t n) {
  using P = Pack<T>;
  int64_t i = 0;
  for (; i + P::size <= n; i += P::size) (P::load(a + i) + P::load(b + i)).template put<Stream>(c + i);
  for (; i < n; ++i) c[i] = a[i] + b[i];
}

template <class T>
void copy(const T* a, T* b, int64_t n, bool stream) {
  if (stream) copy_run<T, true>(a, b, n), finish_streaming();
  else copy_run<T, false>(a, b, n);
}

template <class T>
void triad(const T* a, const T* b, T* c, int64_t n, bool stream) {
  if (stream) triad_run<T, true>(a, b, c, n), finish_streaming();
  else triad_run<T, false>(a, b, c, n);
}
