// Cross entropy with options in `kernels_check.cu`, which includes this behind all that it uses.

struct OptionBuffers {
  Buffer nll{kMostBytes}, entropy{kMostBytes}, predicted{kMostBytes}, rank{kMostBytes}, known_total{kMostBytes};
  Buffer of_lse{kMostBytes}, of_entropy{kMostBytes};
  Buffer class_weights{2 * kMostBytes}, mix{kMostBytes}, smoothing{kMostBytes}, z_loss{kMostBytes}, softcap{kMostBytes},
      margin{kMostBytes}, temperature{kMostBytes}, second_label{kMostBytes}, num_classes{kMostBytes};
};

enum class Asked { results, sums, gradient_of_known, gradient_of_stats };

// All results of rows in one variant; or a gradient alone, from sums that are known or of statistics too.
template <class Logit, class Target, bool by_index>
void check_option_case(Buffers& buffers, OptionBuffers& more, Report& report, const Variant& variant, Asked asked,
                       const OptionCase<Logit, Target, by_index>& c, const char* what, int64_t parts = 0) {
  using Real = Accumulator<Logit>;
  CrossEntropyOptionRows<Logit, std::conditional_t<by_index, ClassIndices, ClassProbabilities<Target>>> rows;
  Logit* logits = buffers.prediction.put(c.logits.data(), c.logits.size(), variant.logits_shift);
  rows.logits = logits;
  if constexpr (by_index) {
    rows.target.index = buffers.target.put(c.index.data(), c.index.size(), 0);
  } else {
    rows.target.probability = buffers.target.put(c.probability.data(), c.probability.size(), variant.target_shift);
  }
  rows.rows = c.rows;
  rows.classes = rows.smoothed_classes = c.classes;
  rows.ceiling = static_cast<Real>(c.ceiling);
  c.weight.put(buffers.weight, rows.row_weight);
  c.second_label.put(more.second_label, rows.second_label);
  c.mix.put(more.mix, rows.mix);
  c.smoothing.put(more.smoothing, rows.label_smoothing);
  c.z_loss.put(more.z_loss, rows.z_loss);
  c.softcap.put(more.softcap, rows.softcap);
  c.margin.put(more.margin, rows.margin);
  c.temperature.put(more.temperature, rows.temperature);
  c.num_classes.put(more.num_classes, rows.num_classes);
  if (!c.class_weights.empty()) {
    rows.class_weights = more.class_weights.put(c.class_weights.data(), c.class_weights.size(), variant.gradient_shift);
    rows.rows_per_class_weights = c.rows_per_class_weights;
  }
  const bool results = asked == Asked::results;
  if (asked == Asked::gradient_of_known) {
    rows.known_max = buffers.max.put(c.known_max.data(), c.rows, 0);
    rows.known_log_sum = buffers.log_sum.put(c.known_log_sum.data(), c.rows, 0);
    rows.known_total = more.known_total.put(c.known_total.data(), c.rows, 0);
  } else if (asked == Asked::gradient_of_stats) {
    rows.of_lse = more.of_lse.put(c.of_lse.data(), c.rows, 0);
    rows.of_entropy = more.of_entropy.put(c.of_entropy.data(), c.rows, 0);
  } else if (asked == Asked::sums) {
    rows.sums = buffers.loss.put<Real>(nullptr, parts, 0);
    rows.parts = parts;
  } else {
    rows.loss = buffers.loss.put<Real>(nullptr, c.rows, 0);
  }
  const bool details = variant.stats && results, in_tiles = gpu::asked_for() == gpu::Regime::tiles;
  const bool sums = results && (details || (in_tiles && c.rows % 2));
  if (sums) {
    rows.max = buffers.max.put<Real>(nullptr, c.rows, 0);
    rows.log_sum = buffers.log_sum.put<Real>(nullptr, c.rows, 0);
    rows.nll = more.nll.put<Real>(nullptr, c.rows, 0);
  }
  if (details) {
    rows.entropy = more.entropy.put<Real>(nullptr, c.rows, 0);
    rows.predicted = more.predicted.put<int32_t>(nullptr, c.rows, 0);
    rows.rank = more.rank.put<int32_t>(nullptr, c.rows, 0);
  }
  rows.gradient = variant.in_place   ? logits
                  : variant.gradient ? buffers.gradient.put<Logit>(nullptr, c.logits.size(), variant.gradient_shift)
                                     : nullptr;
  require(gpu::launch(nullptr, rows), what);
  require(cudaDeviceSynchronize(), what);
  if (results) report.check<Real>("loss", buffers.loss, c.loss);
  if (asked == Asked::sums) check_parts<Real>(buffers, report, c.loss);
  if (variant.gradient) {
    const auto& expected = results || asked == Asked::sums     ? c.gradient
                           : asked == Asked::gradient_of_known ? c.gradient_of_known
                                                               : c.gradient_of_stats;
    report.check<Logit>("gradient", variant.in_place ? buffers.prediction : buffers.gradient, expected);
  }
  if (sums) {
    report.check<Real>("max", buffers.max, c.max);
    report.check<Real>("log_sum", buffers.log_sum, c.log_sum);
    report.check<Real>("nll", more.nll, c.nll);
  }
  if (!details) return;
  report.check<Real>("entropy", more.entropy, c.entropy);
  report.check<int32_t>("rank", more.rank, c.rank);
  report.check<int32_t>("predicted", more.predicted, c.predicted);
}

// Rows of some lanes, of a warp, of one block, of clusters, and one that is too long for a cluster.
constexpr int64_t kOptionShapes[][2] = {{65, 1},    {40, 2},    {301, 3},   {129, 7},    {300, 10},   {200, 33},
                                        {130, 100}, {40, 1000}, {33, 1025}, {20, 2048},  {12, 4099},  {9, 8191},
                                        {6, 16384}, {5, 32001}, {4, 50264}, {3, 128256}, {2, 262147}, {1, 1000003}};

// Many rows of few classes, for tiles: a whole one, some of them and a rest, and as many as a warp has more of than
// stages.
constexpr int64_t kTileShapes[][2] = {{200, 2},  {9001, 2}, {4003, 3},  {3000, 4}, {2400, 8}, {1999, 10},
                                      {601, 31}, {300, 64}, {199, 100}, {70, 257}, {65, 264}, {33, 523}};

uint64_t option_cases = 0;  // of all types, so that each has other sets of options for long rows

// `regime` is streaming where held rows are not to be used: then fewer cases are run; `tiles` has shapes of its own.
template <class Logit, class Target, bool by_index>
void check_options(Buffers& buffers, const std::string& regime) {
  if (!is_checked<Logit>()) return;
  Report report(std::string("cross entropy with options ") + Traits<Logit>::name + "/" +
                (by_index ? "indices" : Traits<Target>::name) + " " + regime);
  OptionBuffers more;
  const bool may_be_held = by_index && sizeof(Logit) < 8, few = regime == "streaming", in_tiles = regime == "tiles";
  const auto check_shape = [&](int64_t rows, int64_t classes) {
    if (classes > 200000 && !may_be_held) return;
    if (few_sizes() && ((!in_tiles && rows > 200) || classes > 60000)) return;
    for (int number = 0; number < kSetsOfOptions; number++) {
      Random random{++option_cases};
      const uint64_t seed = option_cases;
      if ((few || classes > 5000) && seed % 5) continue;
      if (few_sizes() && seed % 7) continue;
      const int set = set_of_options(number, by_index, random);
      const OptionCase<Logit, Target, by_index> c(set, rows, classes, seed, in_tiles);
      const auto finite = c.with_finite_losses();
      const std::pair<Asked, const char*> gradients_alone[] = {{Asked::gradient_of_known, "known"},
                                                               {Asked::gradient_of_stats, "of stats"}};
      for (size_t v = 0; v < std::size(kVariants) + std::size(gradients_alone); v++) {
        const bool alone = v >= std::size(kVariants);
        if (classes > 5000 && (v + seed) % (alone ? 3 : 2) != 0) continue;
        const auto [asked, name] =
            alone ? gradients_alone[v - std::size(kVariants)] : std::pair{Asked::results, "variant"};
        char what[120];
        std::snprintf(what, sizeof(what), "options %d rows %lld classes %lld seed %llu %s %zu", set, (long long)rows,
                      (long long)classes, (unsigned long long)seed, name, v);
        report.begin(what);
        // Of known rows logits and gradient are not aligned alike, which only a gradient of statistics asks for.
        const size_t variant = asked == Asked::gradient_of_stats ? 2 + seed % 3 : alone ? 4 : v;
        check_option_case(buffers, more, report, kVariants[variant], asked, c, what);
        if (!by_index || asked != Asked::results || kVariants[v].stats || classes > 600) continue;
        for (const int64_t parts : {1, 2, 100}) {
          check_option_case(buffers, more, report, kVariants[v], Asked::sums, finite, what, parts);
        }
      }
    }
  };
  if (in_tiles) {
    for (const auto& [rows, classes] : kTileShapes) check_shape(rows, classes);
  } else {
    for (const auto& [rows, classes] : kOptionShapes) check_shape(rows, classes);
  }
}
