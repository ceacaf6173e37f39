// Rows with options for `options_check.cuh`: what kernels are given of them, and what is to come out.

// Bits of a set of options. Of a small softcap logits are far above it.
constexpr int kSecondLabel = 1, kClassWeights = 2, kSmoothing = 4, kZLoss = 8, kSoftcap = 16, kMargin = 32,
              kTemperature = 64, kNumClasses = 128, kSmallSoftcap = 256;
constexpr int kOptions = 9, kRandomSets = 12, kSetsOfOptions = 1 + kOptions + kRandomSets;

// None, each alone, and random ones.
int set_of_options(int number, bool by_index, Random& random) {
  int set = number == 0 ? 0 : 1 << (number - 1);
  if (number > kOptions) {
    set = static_cast<int>(random.below(1 << kOptions));
    if (random.below(3)) set &= ~kSmallSoftcap;
  }
  const bool both = (set & kSecondLabel) && (set & kMargin);
  if (both) set &= ~(random.below(2) ? kSecondLabel : kMargin);
  return by_index ? set : set & ~(kSecondLabel | kMargin);
}

// How many rows share a number: any, one or all, or all.
enum class Sharing { any, one_or_all, all };

// Numbers that rows share, `rows_per_number` of them each; empty where the option is not given.
template <class Number>
struct SharedNumbers {
  std::vector<Number> numbers;
  int64_t rows_per_number = 1;

  template <class Draw>
  void draw(bool given, int64_t rows, Random& random, Sharing sharing, Draw of_row) {
    const int64_t some[] = {rows, 1, 1, 3};
    rows_per_number = sharing == Sharing::all ? rows : some[random.below(sharing == Sharing::any ? 4 : 3)];
    for (int64_t row = 0; given && row < rows; row += rows_per_number) {
      numbers.push_back(static_cast<Number>(of_row(row)));
    }
  }
  bool given() const { return !numbers.empty(); }
  double of(int64_t row, double otherwise) const { return given() ? wide(numbers[row / rows_per_number]) : otherwise; }
  void put(Buffer& buffer, RowNumbers<Number>& to) const {
    if (given()) to = {to.otherwise, buffer.put(numbers.data(), numbers.size(), 0), rows_per_number};
  }
};

template <class Logit, class Target, bool by_index>
struct OptionCase {
  using Real = Accumulator<Logit>;
  int64_t rows, classes, rows_per_class_weights = 1;
  std::vector<Logit> logits;
  std::vector<int32_t> index;
  std::vector<Target> probability;
  std::vector<Real> class_weights;
  SharedNumbers<Real> weight, mix, smoothing, z_loss, softcap, margin, temperature;
  SharedNumbers<int32_t> second_label, num_classes;
  double ceiling;
  bool low;  // some rows have logits in their upper half that are as good as masked, which no class weight counts
  std::vector<Real> known_max, known_log_sum, known_total, of_lse, of_entropy;
  std::vector<Expected> loss, max, log_sum, nll, entropy, predicted, rank;
  std::vector<Expected> gradient, gradient_of_known, gradient_of_stats;

  // `alike`: rows have the same options, but for weights and what belongs to labels.
  OptionCase(int set, int64_t row_count, int64_t class_count, uint64_t seed, bool alike)
      : rows(row_count), classes(class_count) {
    Random random{seed};
    const Sharing of_rows = alike ? Sharing::one_or_all : Sharing::any,
                  of_options = alike ? Sharing::all : Sharing::any;
    ceiling = random.below(3) ? static_cast<Real>(-std::log(1e-7)) : kInfinity;
    low = random.below(3) == 0;
    const auto between = [&](double low, double high) { return low + (high - low) * random.uniform(); };
    const auto sometimes_0 = [&](double number) { return random.below(6) ? number : 0; };
    weight.draw(true, rows, random, of_rows, [&](int64_t row) {
      const int64_t which = (row + seed) % 7;
      return which == 1 ? -0.0 : which == 3 ? 0.0 : random.normal();
    });
    num_classes.draw(set & kNumClasses, rows, random, of_options,
                     [&](int64_t) { return random.below(3) ? 1 + random.below(classes) : classes; });
    smoothing.draw(set & kSmoothing, rows, random, of_options,
                   [&](int64_t) { return sometimes_0(between(0.05, 0.5)); });
    z_loss.draw(set & kZLoss, rows, random, of_options, [&](int64_t) { return sometimes_0(between(0.001, 0.1)); });
    softcap.draw(set & (kSoftcap | kSmallSoftcap), rows, random, of_options,
                 [&](int64_t) { return set & kSmallSoftcap ? between(0.01, 0.5) : between(2, 30); });
    margin.draw(set & kMargin, rows, random, of_options, [&](int64_t) { return between(0.1, 1); });
    temperature.draw(set & kTemperature, rows, random, of_options, [&](int64_t) { return between(0.5, 2); });
    for (int64_t row = 0; row < rows; row++) draw_row(row, random);
    second_label.draw(set & kSecondLabel, rows, random, of_rows, [&](int64_t row) {
      return random.below(4) ? random.below(counted(row)) : random.below(8) ? int64_t{index[row]} : classes;
    });
    mix.draw(set & kSecondLabel, rows, random, of_rows, [&](int64_t) { return sometimes_0(random.uniform()); });
    if (set & kClassWeights) {
      rows_per_class_weights = alike || random.below(2) ? rows : random.below(2) ? 1 : 2;
      const int64_t sets = (rows + rows_per_class_weights - 1) / rows_per_class_weights;
      for (int64_t i = 0; i < sets * classes; i++) {
        const bool weighs = random.below(8) && !(low && i % classes >= classes / 2);
        class_weights.push_back(static_cast<Real>(weighs ? 2 * random.uniform() : 0));
      }
    }
    for (int64_t row = 0; row < rows; row++) {
      for (auto* weights : {&of_lse, &of_entropy}) weights->push_back(static_cast<Real>(sometimes_0(random.normal())));
      expect_row(row);
    }
  }

  // The same rows, but that those are masked whose loss is no number, or so large that sums overflow.
  OptionCase with_finite_losses() const {
    OptionCase c = *this;
    c.weight.rows_per_number = 1;
    c.weight.numbers.clear();
    for (int64_t row = 0; row < rows; row++) {
      const bool finite = std::fabs(loss[row].value) < 1e30 && loss[row].tolerance < kInfinity;
      c.weight.numbers.push_back(static_cast<Real>(finite ? weight.of(row, 1) : -0.0));
      if (finite) continue;
      c.loss[row] = {0, 0};
      std::fill_n(c.gradient.begin() + row * classes, classes, Expected{0, 0});
    }
    return c;
  }

 private:
  int64_t counted(int64_t row) const { return static_cast<int64_t>(num_classes.of(row, static_cast<double>(classes))); }
  bool is_out(int64_t row) const { return weight.of(row, 1) == 0 && std::signbit(weight.of(row, 1)); }

  // Logits and target; NaN beyond the classes that count.
  void draw_row(int64_t row, Random& random) {
    const int64_t n = counted(row), bad = random.below(40);
    const bool out = is_out(row), rounds = random.below(4) == 0;
    const int kind = out               ? kTakenOut
                     : random.below(2) ? kNormal
                                       : kOffset + static_cast<int>(random.below(kKinds - kOffset));
    std::vector<double> x = logits_of<Logit>(kind, classes, random);
    const bool is_low = low && kind == kNormal && classes > 1 && random.below(2);
    const double lowest = std::max(random.below(2) ? -1e9 : -kInfinity, -Traits<Logit>::largest);
    for (int64_t i = classes / 2; is_low && i < classes; i++) x[i] = lowest;
    for (int64_t i = 0; i < classes; i++) {
      logits.push_back(narrow<Logit>(i >= n ? kNan : rounds ? std::nearbyint(x[i]) : x[i]));
    }
    const int64_t bad_labels[] = {-1, n, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()};
    const int64_t ends[] = {0, n - 1};
    const int64_t any = random.below(6) ? random.below(n) : ends[random.below(2)];
    const int64_t label = is_low ? any % (classes / 2) : any;
    index.push_back(static_cast<int32_t>(!by_index ? -1 : bad < 4 ? bad_labels[bad] : label));
    for (int64_t i = 0; i < classes && !by_index; i++) {
      const double a = random.below(4) == 0 ? 0 : 2 * random.uniform() / static_cast<double>(classes);
      probability.push_back(narrow<Target>(out || i >= n ? kNan : a));
    }
  }

  void expect_masked_row() {
    for (auto* results : {&loss, &max, &log_sum, &nll, &entropy}) results->push_back({0, 0});
    predicted.push_back({-1, 0.5});
    rank.push_back({static_cast<double>(classes), 0.5});
    for (auto* results : {&gradient, &gradient_of_known, &gradient_of_stats}) {
      results->insert(results->end(), classes, Expected{0, 0});
    }
    for (auto* known : {&known_max, &known_log_sum, &known_total}) known->push_back(static_cast<Real>(kNan));
  }

  // The first of the largest, and how many come before the label. Scores of different logits that nearly tie may tie
  // where they are computed, or change their order.
  void expect_order(int64_t row, const std::vector<double>& ranked, const std::vector<double>& error, bool open) {
    const int64_t n = static_cast<int64_t>(ranked.size()), label = index[row];
    const bool has_label = label >= 0 && label < n, exact = !softcap.given() && !temperature.given();
    const auto score = [&](int64_t i) { return std::isnan(ranked[i]) ? -kInfinity : ranked[i]; };
    const auto near = [&](int64_t i, int64_t j) {
      return !exact && std::fabs(ranked[i] - ranked[j]) <= 2 * (error[i] + error[j]) &&
             wide(logits[row * classes + i]) != wide(logits[row * classes + j]);
    };
    int64_t best = 0, before = 0;
    for (int64_t i = 1; i < n; i++) best = score(i) > score(best) ? i : best;
    bool near_best = open, near_label = open;
    for (int64_t i = 0; i < n; i++) {
      near_best |= near(i, best);
      if (!has_label) continue;
      near_label |= near(i, label);
      before += ranked[i] > ranked[label] || (ranked[i] == ranked[label] && i < label);
    }
    predicted.push_back({static_cast<double>(best), near_best ? kInfinity : 0.5});
    rank.push_back({static_cast<double>(has_label ? before : classes), near_label ? kInfinity : 0.5});
  }

  // Scores err by some roundings of their size where they are not the logits themselves, and so do exponentials of
  // them, relatively.
  void expect_row(int64_t row) {
    if (is_out(row)) return expect_masked_row();
    constexpr bool in_double = std::is_same_v<Real, double>;
    constexpr double slack = kSlack<Real>, unit = in_double ? 2.3e-16 : 1.2e-7;
    constexpr double most = std::numeric_limits<Real>::max(), least = std::numeric_limits<Real>::min();
    const Expected anything{0, kInfinity};
    const int64_t n = counted(row), label = index[row];
    const int64_t second = static_cast<int64_t>(second_label.of(row, -1));
    const auto is_class = [&](int64_t i) { return i >= 0 && i < n; };
    const bool valid = !by_index || (is_class(label) && (!second_label.given() || is_class(second)));
    const double w = weight.of(row, 1), share = mix.of(row, 1), epsilon = smoothing.of(row, 0);
    const double zeta = z_loss.of(row, 0), cap = softcap.of(row, 1), scale = 1 / temperature.of(row, 1);
    const bool capped = softcap.given();
    const int64_t weights_of_row = row / rows_per_class_weights * classes;
    const double roundings = unit * ((temperature.given() ? 2 : 0) + (capped ? 6 : 0));

    std::vector<double> ranked(n), z(n), error(n), slope(n), slope_error(n), a(n), b(n);
    double max_of_row = -kInfinity, error_of_max = 0, size_of_target = 0, size = 0;
    long double of_target = 0, sum = 0;  // of many equal terms, which a double would round all the same way
    bool undefined = false;
    for (int64_t i = 0; i < n; i++) {
      const double x = wide(logits[row * classes + i]), in_caps = x / cap, decay = std::exp(-2 * std::fabs(in_caps));
      const double moved = i == label ? margin.of(row, 0) * scale : 0;
      ranked[i] = (capped ? cap * std::tanh(in_caps) : x) * scale;
      z[i] = ranked[i] - moved;
      error[i] = std::isinf(z[i]) ? 0 : (roundings + (moved ? 2 * unit : 0)) * (std::fabs(z[i]) + moved);
      slope[i] = scale * (capped ? 4 * decay / ((1 + decay) * (1 + decay)) : 1);
      slope_error[i] = slope[i] * slack;
      if (capped) {  // 1 − tanh² is good enough for 16 bits
        slope_error[i] += 4 * unit * slope[i] * std::min(1e3, std::fabs(in_caps));
        slope_error[i] += scale * (sizeof(Logit) == 2 ? slack : 4 * least);
      }
      a[i] = by_index ? share * (i == label) + (1 - share) * (i == second) : wide(probability[row * classes + i]);
      b[i] = (class_weights.empty() ? 1 : wide(class_weights[weights_of_row + i])) *
             ((1 - epsilon) * a[i] + (z[i] == -kInfinity ? 0 : epsilon / static_cast<double>(classes)));
      of_target += b[i];
      size_of_target += std::fabs(b[i]);
      undefined |= std::isnan(z[i]);
      if (z[i] > max_of_row) max_of_row = z[i], error_of_max = error[i];
      if (std::isfinite(z[i]) && b[i] != 0) size = std::max(size, std::fabs(z[i]));
    }
    undefined |= std::isinf(max_of_row);
    size = std::max(size, undefined ? 0 : std::fabs(max_of_row));
    for (double value : z) sum += std::exp(value - max_of_row);
    const double log_sum_of_row = undefined ? kNan : static_cast<double>(std::log(sum)),
                 lse = max_of_row + log_sum_of_row;
    // Where more than a label's own loss may overflow, nothing is asked for.
    const bool open = size > (in_double ? 1e300 : 1e30) && (z_loss.given() || smoothing.given() || temperature.given());

    std::vector<double> p(n), error_of_p(n), far(n);
    double mean_error = 0, entropy_error = 0;
    long double entropy_of_row = 0;
    for (int64_t i = 0; i < n; i++) {
      p[i] = undefined ? kNan : std::exp(z[i] - max_of_row - log_sum_of_row);
      far[i] = std::isinf(z[i]) ? 0 : std::min(1e3, max_of_row - z[i]);
      error_of_p[i] = 2 * slack + 2 * unit * (far[i] + log_sum_of_row) + error[i] + error_of_max;
      mean_error += p[i] * (error[i] + error_of_max);
      if (!(p[i] > 0)) continue;
      entropy_of_row += p[i] * (log_sum_of_row - (z[i] - max_of_row));
      entropy_error += p[i] * (slack + error[i] + error_of_max) * (1 + far[i] + log_sum_of_row);
    }
    const double mean = log_sum_of_row - static_cast<double>(entropy_of_row);
    const double error_of_mean = 2 * entropy_error + slack * std::fabs(mean);
    const double lse_error = slack * (1 + std::fabs(lse)) + error_of_max + mean_error;
    long double loss_of_row = product(zeta, lse * lse), nll_of_row = 0;
    double nll_error = 1e-30;
    double largest_loss = 0;
    const double weight_of_label =
        (class_weights.empty() || !is_class(label) ? 1 : std::fabs(wide(class_weights[weights_of_row + label]))) /
        static_cast<double>(classes);
    double loss_error = 1e-30 + product(zeta, (2 * std::fabs(lse) + lse_error) * lse_error + slack * lse * lse);
    for (int64_t i = 0; i < n; i++) {
      double of_class = log_sum_of_row - (z[i] - max_of_row);
      if (of_class > most) of_class = kInfinity;  // as where it is computed
      const double clipped = of_class > ceiling ? ceiling : of_class;
      loss_of_row += product(b[i], clipped);
      nll_of_row += product(a[i], of_class);
      const double of_scores = std::isinf(z[i]) ? 0 : error[i] + error_of_max + mean_error;
      const auto error_of = [&](double value) {
        return std::isinf(value) ? 0 : 2 * slack * (1 + std::fabs(value) + std::min(1e3, log_sum_of_row)) + of_scores;
      };
      loss_error += product(std::fabs(b[i]), error_of(clipped));
      nll_error += product(std::fabs(a[i]), error_of(of_class));
      if (std::isfinite(clipped)) largest_loss = std::max(largest_loss, clipped);
    }
    // A label may be smoothed over as a class beyond all others or one that is clipped, which is subtracted again.
    loss_error += 2 * slack * std::fabs(epsilon) * weight_of_label * std::min({ceiling, 1.001 * largest_loss + 1, 1e4});
    const auto of_row = [&](long double value, double error_of_value, bool has_target) {
      return open || (undefined && !has_target) ? anything
                                                : Expected{valid ? static_cast<double>(value) : kNan, error_of_value};
    };
    loss.push_back(of_row(loss_of_row, loss_error, size_of_target != 0));
    nll.push_back(of_row(nll_of_row, nll_error, nll_of_row != 0));
    const auto statistic = [&](double value, double error_of_value) {
      return undefined || open ? anything : Expected{value, error_of_value};
    };
    max.push_back(statistic(max_of_row, 1e-15 * std::fabs(max_of_row) + error_of_max + 1e-300));
    log_sum.push_back(statistic(log_sum_of_row, slack * (1 + log_sum_of_row) + mean_error));
    entropy.push_back(statistic(static_cast<double>(entropy_of_row), slack * (1 + log_sum_of_row) + 2 * entropy_error));

    expect_order(row, ranked, error, open);

    const double total = static_cast<double>(of_target) + product(2 * zeta, lse);
    const double total_error = slack * size_of_target + product(2 * zeta, lse_error);
    for (int64_t i = 0; i < n; i++) {
      // (total (p − 1)) + (total − b) is computed of labels and of the largest.
      const bool apart = i == label || i == second || z[i] == max_of_row;
      const double derivative = total * p[i] - b[i], want = derivative * slope[i] * w;
      const double derivative_error = std::fabs(total) * p[i] * (error_of_p[i] + mean_error) + p[i] * total_error +
                                      slack * (std::fabs(b[i]) + (apart ? std::fabs(total) : 0)) +
                                      least * (1 + std::fabs(total));
      const double computed = derivative_error * (slope[i] + slope_error[i]) + std::fabs(derivative) * slope_error[i];
      const double tolerance = computed * std::fabs(w) + Traits<Logit>::rounding * std::fabs(want) +
                               2 * Traits<Logit>::smallest * (1 + std::fabs(w) * scale);
      const bool too_large = open || std::fabs(want) + tolerance > 0.99 * Traits<Logit>::largest;
      const Expected expected = w == 0 ? Expected{0, 0} : too_large ? anything : Expected{want, tolerance};
      gradient.push_back(valid ? expected : Expected{0, 0});
      gradient_of_known.push_back(expected);

      // Of a log-sum-exp p, of an entropy −p ((z − max) − Σ p (z − max)).
      const double apart_from_max = std::isinf(z[i]) ? -1e3 : z[i] - max_of_row, w_of_loss = valid ? w : 0;
      const double lse_weight = wide(of_lse[row]), entropy_weight = wide(of_entropy[row]);
      const double of_stats = lse_weight - entropy_weight * (apart_from_max - mean);
      const double size_of_stats =
          std::fabs(lse_weight) + std::fabs(entropy_weight) * (std::fabs(apart_from_max) - mean);
      const double error_of_stats = std::fabs(entropy_weight) * (error[i] + error_of_max + error_of_mean) +
                                    size_of_stats * (4 * unit + error_of_p[i] + mean_error);
      const double both = product(w_of_loss, derivative) + product(p[i], of_stats), want_both = both * slope[i];
      const double derivative_of_both = derivative_error * std::fabs(w_of_loss) + p[i] * error_of_stats + 4 * least;
      const double tolerance_of_both = derivative_of_both * (slope[i] + slope_error[i]) +
                                       (std::fabs(both) + p[i] * size_of_stats) * slope_error[i] +
                                       Traits<Logit>::rounding * std::fabs(want_both) +
                                       2 * Traits<Logit>::smallest * (1 + (std::fabs(w) + size_of_stats) * scale);
      const bool no_number =
          open || undefined || !(std::fabs(want_both) + tolerance_of_both <= 0.99 * Traits<Logit>::largest);
      gradient_of_stats.push_back(no_number ? anything : Expected{want_both, tolerance_of_both});
    }
    for (auto* results : {&gradient, &gradient_of_known, &gradient_of_stats}) {
      results->insert(results->end(), classes - n, Expected{0, 0});
    }
    known_max.push_back(static_cast<Real>(max_of_row));
    known_log_sum.push_back(static_cast<Real>(log_sum_of_row));
    known_total.push_back(static_cast<Real>(total));
  }
};
