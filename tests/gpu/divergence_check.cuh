// The divergences in `kernels_check.cu`, which includes this behind all that it uses.

// A row's softmax at a temperature of 1 / scale, or probabilities: logarithms of them, their magnitudes, and
// themselves.
struct Distribution {
  std::vector<double> probability, log, size;
  double max = 0, log_sum = 0;
  bool undefined = false;
};

template <class Real>
Distribution softmax_of(const std::vector<double>& x, double scale) {
  Distribution d;
  d.max = -std::numeric_limits<Real>::max();
  for (double value : x) {
    d.undefined |= std::isnan(value) || value == kInfinity;
    if (value > d.max) d.max = value;
  }
  double sum = 0;
  for (double value : x) sum += std::exp((value - d.max) * scale);
  d.undefined |= !x.empty() && sum == 0;
  d.log_sum = std::log(sum);
  for (double value : x) {
    const double tempered = (value - d.max) * scale;
    d.log.push_back(d.undefined ? kNan : tempered - d.log_sum);
    d.probability.push_back(std::exp(d.log.back()));
    d.size.push_back(1 + std::fabs(d.log_sum) + (std::isinf(tempered) ? 0 : std::fabs(tempered)));
  }
  return d;
}

Distribution probabilities(const std::vector<double>& a) {
  Distribution d;
  d.probability = a;
  for (double value : a) {
    d.log.push_back(std::log(value));
    d.size.push_back(1 + (value > 0 ? std::fabs(std::log(value)) : 0));
  }
  return d;
}

// What a divergence of a row is to be: sums over its classes, and the derivative with respect to the tempered logits.
struct DivergenceOfRow {
  double loss = 0, loss_size = 0, total = 0, total_size = 0;
  std::vector<double> gradient, gradient_size;
};

DivergenceOfRow divergence_of(KullbackLeibler, const Distribution& p, const Distribution& q, double) {
  DivergenceOfRow of;
  const size_t classes = p.log.size();
  for (size_t i = 0; i < classes; i++) {
    const double a = q.probability[i];
    of.total -= a;
    of.total_size += a;
    if (a == 0) continue;
    of.loss += a * (q.log[i] - p.log[i]);
    of.loss_size += a * (p.size[i] + q.size[i]);
  }
  for (size_t i = 0; i < classes; i++) {
    of.gradient.push_back(-p.probability[i] * of.total - q.probability[i]);
    of.gradient_size.push_back(p.probability[i] * p.size[i] * of.total_size + q.probability[i] * q.size[i]);
  }
  return of;
}

DivergenceOfRow divergence_of(JensenShannon, const Distribution& p, const Distribution& q, double beta) {
  DivergenceOfRow of;
  const size_t classes = p.log.size();
  std::vector<double> ratio(classes);  // log p/m
  double sum = 0, sum_size = 0;
  for (size_t i = 0; i < classes; i++) {
    const double s = p.probability[i], a = q.probability[i], m = beta * a + (1 - beta) * s;
    const double difference = q.log[i] - p.log[i];
    ratio[i] = s == 0           ? 0
               : difference > 0 ? -difference - std::log(beta + (1 - beta) * std::exp(-difference))
                                : -std::log(beta * std::exp(difference) + 1 - beta);
    const double size = p.size[i] + q.size[i];
    of.loss += (1 - beta) * s * ratio[i] + (a == 0 ? 0 : beta * a * (q.log[i] - std::log(m)));
    of.loss_size += m * size;
    sum += s * ratio[i];
    sum_size += s * (p.size[i] * std::fabs(ratio[i]) + size);
  }
  of.total = (1 - beta) * sum;
  of.total_size = (1 - beta) * sum_size;
  for (size_t i = 0; i < classes; i++) {
    const double s = p.probability[i], size = p.size[i] + q.size[i];
    of.gradient.push_back((1 - beta) * s * (ratio[i] - sum));
    of.gradient_size.push_back((1 - beta) * s * (p.size[i] * (std::fabs(ratio[i]) + std::fabs(sum)) + size + sum_size));
  }
  return of;
}

// A student's and a teacher's logits that are close: tiny but for one, from which most do not differ by a float;
// `late`: it is large and near the end, where the sums of nearly all others are known before it is.
template <class Logit, class Stored>
void close_logits(int64_t classes, Random& random, bool late, std::vector<double>& x, std::vector<double>& y) {
  const double largest = late ? 11.1875 : random.below(3) == 0 ? 8 : 0.5;
  const double distance = late || random.below(2) == 0 ? 4e-5 : 1e-3;
  const int64_t place = late ? classes - 1 - classes / 16 : classes / 2;
  for (int64_t i = 0; i < classes; i++) {
    x.push_back(wide(narrow<Logit>(i == place ? largest : 1e-4 * random.uniform())));
    y.push_back(wide(narrow<Stored>(i == place ? largest : x.back() + distance * random.normal())));
  }
}

// A divergence of those: right relative to itself. Of what the sums of exponentials are off by it has the square; where
// the largest is late, of what all terms of a row are off by together.
template <class Real>
Expected close_loss(KullbackLeibler, const Distribution& p, const Distribution& q, double, bool late) {
  double loss = 0;
  for (size_t i = 0; i < p.log.size(); i++) {
    const double d = p.log[i] - q.log[i];
    loss += q.probability[i] * (std::expm1(d) - d);
  }
  return {loss, 1e-4 * loss + (std::is_same_v<Real, double> ? 1e-15 : late ? 5e-14 : 2e-13)};
}
template <class Real>
Expected close_loss(JensenShannon, const Distribution& p, const Distribution& q, double beta, bool late) {
  double loss = 0;
  for (size_t i = 0; i < p.log.size(); i++) {
    const double u = std::expm1(p.log[i] - q.log[i]), rest = 1 - beta;
    loss += q.probability[i] * (rest * (1 + u) * std::log1p(u) - (1 + rest * u) * std::log1p(rest * u));
  }
  return {loss, 1e-4 * loss + (std::is_same_v<Real, double> ? 1e-15 : late ? 5e-14 : 2e-13)};
}

template <class Logit, class Stored>
struct DivergenceCase {
  using Real = Accumulator<Logit>;
  std::vector<Logit> logits;
  std::vector<Stored> teacher;
  std::vector<Real> weight, scale;
  Real beta = static_cast<Real>(0.3);
  std::vector<Expected> loss, max, log_sum, teacher_max, teacher_log_sum, total, gradient;
};

template <class Divergence, class Logit, class Stored, bool of_logits>
DivergenceCase<Logit, Stored> make_divergence(int64_t rows, int64_t classes, int64_t rows_each, uint64_t seed,
                                              bool all_close) {
  using Real = Accumulator<Logit>;
  constexpr Kind kinds[] = {kNormal, kNormal,      kNormal, kOffset, kSomeInfinite, kAllInfinite,
                            kHasNan, kHasInfinity, kLowest, kWide,   kPeak};
  Random random{seed};
  DivergenceCase<Logit, Stored> c;
  const double slack = (std::is_same_v<Real, double> ? 16 : 2) * kSlack<Real>;
  for (int64_t row = 0; row < rows; row++) {
    const int64_t which = (row + seed) % 7;
    const double weight = static_cast<Real>(which == 1 ? -0.0 : which == 3 ? 0.0 : random.normal());
    c.weight.push_back(static_cast<Real>(weight));
    const double varied = 0.3 + 1.5 * random.uniform();
    if (row % rows_each == 0) c.scale.push_back(static_cast<Real>(all_close ? 1 : varied));
    const double scale = wide(c.scale.back());
    const bool out = weight == 0 && std::signbit(weight);
    const auto kind = [&] { return out ? kTakenOut : kinds[random.below(std::size(kinds))]; };
    const bool close = of_logits && !out && (all_close || random.below(4) == 0);
    std::vector<double> x, y;
    if (close) {
      close_logits<Logit, Stored>(classes, random, all_close, x, y);
    } else {
      x = logits_of<Logit>(kind(), classes, random);
    }
    if (of_logits && !close) {
      y = logits_of<Stored>(kind(), classes, random);
    } else if (!of_logits) {
      for (int64_t i = 0; i < classes; i++) {
        const double a = random.below(4) == 0 ? 0 : 2 * random.uniform() / static_cast<double>(classes);
        y.push_back(out ? kNan : wide(narrow<Stored>(a)));
      }
    }
    for (double value : x) c.logits.push_back(narrow<Logit>(value));
    for (double value : y) c.teacher.push_back(narrow<Stored>(value));
    if (out) {
      for (auto* of_row : {&c.loss, &c.max, &c.log_sum, &c.teacher_max, &c.teacher_log_sum, &c.total}) {
        of_row->push_back({0, 0});
      }
      c.gradient.insert(c.gradient.end(), classes, Expected{0, 0});
      continue;
    }
    const Distribution p = softmax_of<Real>(x, scale);
    Distribution q = of_logits ? softmax_of<Real>(y, scale) : probabilities(y);
    for (double& probability : q.probability) {  // what the arithmetic flushes to 0 is 0
      if (of_logits && std::fabs(probability) < std::numeric_limits<Real>::min()) probability = 0;
    }
    const DivergenceOfRow of = divergence_of(Divergence{}, p, q, wide(c.beta));
    const auto stats = [&](const Distribution& d, std::vector<Expected>& max, std::vector<Expected>& log_sum) {
      max.push_back(d.undefined ? Expected{0, kInfinity} : Expected{d.max, 1e-300});
      log_sum.push_back(d.undefined ? Expected{0, kInfinity} : Expected{d.log_sum, slack * (1 + std::fabs(d.log_sum))});
    };
    stats(p, c.max, c.log_sum);
    if (of_logits) stats(q, c.teacher_max, c.teacher_log_sum);
    c.loss.push_back(close ? close_loss<Real>(Divergence{}, p, q, wide(c.beta), all_close)
                           : Expected{of.loss, slack * of.loss_size + 1e-30});
    c.total.push_back(Divergence::total_is_of_teacher && of_logits ? Expected{-1, 1e-300}
                                                                   : Expected{of.total, slack * of.total_size + 1e-30});
    for (int64_t i = 0; i < classes; i++) {
      const double want = of.gradient[i] * weight * scale;
      // A probability that the arithmetic flushes to 0 lacks in a product with a logarithm.
      const double flushed = 256 * static_cast<double>(std::numeric_limits<Real>::min());
      const double error = (slack * of.gradient_size[i] + flushed) * std::fabs(weight) * scale;
      c.gradient.push_back(weight == 0 ? Expected{0, 0}
                                       : Expected{want, error + Traits<Logit>::rounding * std::fabs(want) +
                                                            4 * Traits<Logit>::smallest});
    }
  }
  return c;
}

template <class Divergence, class Logit, class Stored, bool of_logits>
void check_divergence(Buffers& buffers) {
  if (!is_checked<Logit>()) return;
  using Real = Accumulator<Logit>;
  using Teacher = std::conditional_t<of_logits, TeacherLogits<Stored>, ClassProbabilities<Stored>>;
  Report report(std::string(Divergence::name) + " " + Traits<Logit>::name +
                (of_logits ? "/logits " : "/probabilities ") + Traits<Stored>::name);
  Buffer teacher_max(kMostBytes), teacher_log_sum(kMostBytes), total(kMostBytes), scale(kMostBytes), beta(kMostBytes),
      teacher(kMostNumbers * 4);
  uint64_t seed = 0;
  const auto check_shape = [&](int64_t row_count, int64_t classes, bool all_close = false) {
    seed++;
    const int64_t rows_each = seed % 3 == 0 ? row_count : seed % 3 == 1 && row_count % 3 == 0 ? 3 : 1;
    const auto c =
        make_divergence<Divergence, Logit, Stored, of_logits>(row_count, classes, rows_each, seed, all_close);
    for (size_t v = 0; v < std::size(kVariants); v++) {
      const Variant& variant = kVariants[v];
      if (classes * row_count > 100000 && v != 2 && v != 3) continue;
      char what[120];
      std::snprintf(what, sizeof(what), "rows %lld classes %lld rows_each %lld variant %zu", (long long)row_count,
                    (long long)classes, (long long)rows_each, v);
      report.begin(what);
      DivergenceRows<Divergence, Logit, Teacher> rows = {};
      Logit* logits = buffers.prediction.put(c.logits.data(), c.logits.size(), variant.logits_shift);
      rows.logits = logits;
      rows.teacher = Teacher{teacher.put(c.teacher.data(), c.teacher.size(), variant.target_shift)};
      rows.row_weight = {0, buffers.weight.put(c.weight.data(), row_count, 0), 1};
      rows.scale = {0, scale.put(c.scale.data(), c.scale.size(), 0), rows_each};
      if (Divergence::parameter_count > 0) rows.parameter = {0, beta.put(&c.beta, 1, 0), row_count};
      rows.loss = buffers.loss.put<Real>(nullptr, row_count, 0);
      rows.max = buffers.max.put<Real>(nullptr, row_count, 0);
      rows.log_sum = buffers.log_sum.put<Real>(nullptr, row_count, 0);
      rows.teacher_max = of_logits ? teacher_max.put<Real>(nullptr, row_count, 0) : nullptr;
      rows.teacher_log_sum = of_logits ? teacher_log_sum.put<Real>(nullptr, row_count, 0) : nullptr;
      rows.total = total.put<Real>(nullptr, row_count, 0);
      rows.gradient = variant.in_place   ? logits
                      : variant.gradient ? buffers.gradient.put<Logit>(nullptr, c.logits.size(), variant.gradient_shift)
                                         : nullptr;
      rows.rows = row_count;
      rows.classes = classes;
      require(gpu::launch(nullptr, rows), what);
      require(cudaDeviceSynchronize(), what);
      report.check<Real>("loss", buffers.loss, c.loss);
      report.check<Real>("max", buffers.max, c.max);
      report.check<Real>("log_sum", buffers.log_sum, c.log_sum);
      if (of_logits) report.check<Real>("teacher_max", teacher_max, c.teacher_max);
      if (of_logits) report.check<Real>("teacher_log_sum", teacher_log_sum, c.teacher_log_sum);
      report.check<Real>("total", total, c.total);
      if (variant.gradient) {
        report.check<Logit>("gradient", variant.in_place ? buffers.prediction : buffers.gradient, c.gradient);
      }
    }
  };
  for (const int64_t classes : kClasses) {
    for (const int64_t row_count : kRows) {
      if (few_sizes() && !among_few(row_count, classes)) continue;
      if (classes * row_count <= 60000 || row_count <= 2) check_shape(row_count, classes);
    }
  }
  if (sizeof(Logit) < 8 && of_logits) check_shape(few_sizes() ? 7 : 30, 128256, true);
}

template <class Divergence, class... Pair>
void check_all_divergences(Buffers& buffers, List<Pair...>) {
  (check_divergence<Divergence, typename Pair::Prediction, typename Pair::Target, true>(buffers), ...);
  (check_divergence<Divergence, typename Pair::Prediction, typename Pair::Target, false>(buffers), ...);
}
