// Every CPU kernel over buffers that end exactly where their arrays do, to be compiled with AddressSanitizer and
// UndefinedBehaviorSanitizer: -DJAXLOSS_ISA=… -DVECTOR_BYTES=… as for the library. A sanitizer ends the program at what
// it finds; the numbers themselves are the business of the other tests, but no result may be left unwritten.
//
//   sanitized_kernels               every kernel with every width and number of rows below
//   sanitized_kernels SEED RUNS     so many runs of kernels, each with a random type, sizes, values and alignment
//
// With -DJAXLOSS_THREADS the rows of a run are shared out by the library's own loop over threads, for ThreadSanitizer.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "cpu/cross_entropy.cc"
#include "cpu/cross_entropy_options.cc"
#include "cpu/divergence.cc"
#include "cpu/elementwise.cc"
#include "cpu/kernels.cc"

#if defined(JAXLOSS_THREADS)
#include "handlers/parallel.h"
#include "xla_stand_in.h"
#endif

namespace {

using namespace jaxloss;

constexpr uint8_t kUnwritten = 0xff;  // a NaN that no arithmetic gives
constexpr int64_t kWidths[] = {0,  1,  2,  3,  4,  5,  7,  8,  9,   15,  16,  17,   23,   31,  32,
                               33, 47, 63, 64, 65, 66, 95, 96, 127, 128, 129, 1023, 1024, 1025};
constexpr int64_t kRowCounts[] = {0, 1, 2, 3, 5, 15, 16, 17, 33};
constexpr float kWeights[] = {1.0f, -0.0f, 0.5f, 0.0f, -2.0f};

// What differs from run to run: how many elements after an aligned address each array begins, and where in the lists of
// numbers that arrays are filled with.
int64_t shift = 0, first_number = 0;
int64_t runs = 0;  // of kernels

// An array that ends where its heap block does: one byte beyond it is a sanitizer's error.
template <class T>
class Array {
 public:
  explicit Array(int64_t size) : size_(size), data_(static_cast<T*>(std::malloc((size + shift) * sizeof(T)))) {
    if (size > 0) std::memset(get(), kUnwritten, size * sizeof(T));
  }
  T* get() const { return data_.get() + shift; }
  T& operator[](int64_t i) const { return get()[i]; }
  int64_t size() const { return size_; }

  void require_written(const char* what) const {
    for (int64_t i = 0; i < size_; i++) {
      bool written = false;
      for (size_t byte = 0; byte < sizeof(T); byte++) {
        written |= reinterpret_cast<const uint8_t*>(&get()[i])[byte] != kUnwritten;
      }
      if (!written) {
        std::fprintf(stderr, "%s was not written at %lld of %lld\n", what, (long long)i, (long long)size_);
        std::abort();
      }
    }
  }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  int64_t size_;
  std::unique_ptr<T, Free> data_;
};

// Numbers that take every path: ordinary ones, infinities, NaN, the largest, subnormals.
uint16_t sixteen_bits(float x, bfloat16) {
  uint32_t word;
  std::memcpy(&word, &x, sizeof(word));
  return static_cast<uint16_t>(word >> 16);
}
uint16_t sixteen_bits(float x, float16) {
  if (std::isnan(x)) return 0x7e00;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float magnitude = std::fabs(x);
  if (magnitude >= 65504) return sign | (std::isinf(x) ? 0x7c00 : 0x7bff);
  if (magnitude < 6.2e-5f) return sign | static_cast<uint16_t>(magnitude * 16777216.0f);
  int exponent;
  const float mantissa = std::frexp(magnitude, &exponent);
  return sign | static_cast<uint16_t>(((exponent + 14) << 10) | (static_cast<int>(mantissa * 2048) & 0x3ff));
}
void store(float& to, float x) { to = x; }
void store(double& to, float x) { to = x; }
template <class Stored>
void store(Stored& to, float x) {
  to.bits = sixteen_bits(x, Stored{});
}

template <class T>
void fill(const Array<T>& array, bool wild) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float odd[] = {kInf, -kInf, std::nanf(""), 3.4e38f, -3.4e38f, 1e-40f, -104.0f, 89.0f, 6e-8f, 0.0f};
  for (int64_t i = 0; i < array.size(); i++) {
    const int64_t place = i + first_number;
    const bool special = wild && place % 7 == 3;
    store(array[i], special ? odd[(place / 7) % 10] : 0.37f * static_cast<float>(place * 31 % 29) - 5.0f);
  }
}

template <class Real>
void fill_weights(const Array<Real>& weights, int64_t from) {
  for (int64_t i = 0; i < weights.size(); i++) weights[i] = kWeights[(i + from) % 5];
}

#if defined(JAXLOSS_THREADS)
template <class Task>
void run(const Task& task, int64_t units) {
  static XLA_FFI_ExecutionContext threads(4);
  xla::ffi::DiagnosticEngine diagnostics;
  auto pool = xla::ffi::CtxDecoding<xla::ffi::ThreadPool>::Decode(&stand_in::api(), &threads, diagnostics);
  const auto& kernels = jaxloss::JAXLOSS_ISA::kernels;
  parallel_for(*pool, units, 1 + first_number % 5, [&](int64_t begin, int64_t end) { kernels.run(task, begin, end); });
  runs++;
}
#else
template <class Task>
void run(const Task& task, int64_t units) {
  const auto& kernels = jaxloss::JAXLOSS_ISA::kernels;
  kernels.run(task, 0, units / 2);  // two shares, as two threads would take
  kernels.run(task, units / 2, units);
  runs++;
}
#endif

// The parameters of an elementwise loss, with the memory that they point to: every second one has a number for each
// feature, every third one differs from row to row.
template <class Real, int count>
struct OwnedParameters {
  std::vector<Array<Real>> numbers;
  Parameters<Real, count> parameters{};

  OwnedParameters(int64_t rows, int64_t width, bool wild) {
    if constexpr (count > 0) {
      parameters.features = width % 4 ? width : width / 4;
      for (int k = 0; k < count; k++) {
        const bool per_feature = k % 2 == 0 && parameters.features > 0;
        const int64_t sets = k % 3 ? rows : std::min<int64_t>(rows, 1);
        numbers.emplace_back(sets * (per_feature ? parameters.features : 1));
        fill(numbers.back(), wild);
        parameters.of[k] = {numbers.back().get(), k % 3 ? 1 : std::max<int64_t>(rows, 1), per_feature};
      }
    }
  }
};

template <class Loss, class Prediction, class Target>
void exercise(const ElementwiseTask<Loss, Prediction, Target>*, int64_t rows, int64_t width, bool wild) {
  using Real = Accumulator<Prediction>;
  const double constants[] = {1e-7};
  for (int64_t parts : {1, 2, 5}) {
    for (bool with_gradient : {false, true}) {
      Array<Prediction> prediction(rows * width), gradient(with_gradient ? rows * width : 0);
      Array<Target> target(rows * width);
      Array<Real> weight(rows), loss(rows * parts);
      fill(prediction, wild);
      fill(target, wild);
      fill_weights(weight, parts);
      const OwnedParameters<Real, Loss::parameter_count> owned(rows, width, wild);
      run(ElementwiseTask<Loss, Prediction, Target>{Loss(constants),
                                                    {prediction.get(), target.get(), weight.get(), loss.get(),
                                                     with_gradient ? gradient.get() : nullptr, rows, width, parts,
                                                     owned.parameters}},
          rows * parts);
      loss.require_written("a loss");
      gradient.require_written("a gradient");
    }
  }
}

// A target of rows × classes, with the memory that it points to. Some labels are out of range.
template <class Target>
struct OwnedTarget;
template <>
struct OwnedTarget<ClassIndices> {
  Array<int32_t> index;
  OwnedTarget(int64_t rows, int64_t classes, bool wild) : index(rows) {
    const int32_t odd[] = {-1, static_cast<int32_t>(classes), std::numeric_limits<int32_t>::max(),
                           std::numeric_limits<int32_t>::min()};
    for (int64_t i = 0; i < rows; i++) {
      index[i] = wild && i % 2 ? odd[(i / 2) % 4] : static_cast<int32_t>(classes ? i * 5 % classes : 0);
    }
  }
  ClassIndices get() const { return {index.get()}; }
};
template <class Stored>
struct OwnedTarget<ClassProbabilities<Stored>> {
  Array<Stored> probability;
  OwnedTarget(int64_t rows, int64_t classes, bool wild) : probability(rows * classes) { fill(probability, wild); }
  ClassProbabilities<Stored> get() const { return {probability.get()}; }
};

template <class Logit, class Target>
void exercise(const CrossEntropyRows<Logit, Target>*, int64_t rows, int64_t classes, bool wild) {
  using Real = Accumulator<Logit>;
  const int64_t rows_per_weight = rows % 3 ? 1 : 3;
  for (int results = 0; results < 4; results++) {
    const bool with_stats = results & 1, with_gradient = results & 2;
    Array<Logit> logits(rows * classes), gradient(with_gradient ? rows * classes : 0);
    OwnedTarget<Target> target(rows, classes, wild);
    Array<Real> weight(rows / rows_per_weight), loss(rows), max(with_stats ? rows : 0), log_sum(with_stats ? rows : 0);
    fill(logits, wild);
    fill_weights(weight, results);
    run(CrossEntropyRows<Logit, Target>{logits.get(), target.get(), weight.get(), loss.get(),
                                        with_stats ? max.get() : nullptr, with_stats ? log_sum.get() : nullptr,
                                        with_gradient ? gradient.get() : nullptr, rows, classes, rows_per_weight,
                                        static_cast<Real>(16.1)},
        rows);
    loss.require_written("a loss");
    max.require_written("a maximum");
    log_sum.require_written("a log-sum");
    gradient.require_written("a gradient");
  }
}

template <class Logit, class Target>
void exercise(const CrossEntropyGradientRows<Logit, Target>*, int64_t rows, int64_t classes, bool wild) {
  using Real = Accumulator<Logit>;
  Array<Logit> logits(rows * classes), gradient(rows * classes);
  OwnedTarget<Target> target(rows, classes, wild);
  Array<Real> weight(rows), max(rows), log_sum(rows), target_sum(rows);
  fill(logits, wild);
  fill_weights(weight, 0);
  for (int64_t i = 0; i < rows; i++) {
    max[i] = 5;
    log_sum[i] = 2;
    target_sum[i] = i % 3 ? 1 : 0;
  }
  run(CrossEntropyGradientRows<Logit, Target>{logits.get(), target.get(), weight.get(), max.get(), log_sum.get(),
                                              target_sum.get(), gradient.get(), rows, classes, 1},
      rows);
  gradient.require_written("a gradient");
}

// Every option there is, or every other one, with a number for each row, for every three or for all of them.
template <class Logit, class Target>
void exercise(const CrossEntropyOptionRows<Logit, Target>*, int64_t rows, int64_t classes, bool wild) {
  using Real = Accumulator<Logit>;
  for (int results = 0; results < 8; results++) {
    const bool with_details = results & 1, with_gradient = results & 2, known = results == 6, every = results & 4;
    const int64_t rows_per_number = results == 7 ? rows + (rows == 0) : rows % 3 ? 1 : 3;
    const int64_t numbers = (rows + rows_per_number - 1) / rows_per_number;
    Array<Logit> logits(rows * classes), gradient(with_gradient ? rows * classes : 0);
    OwnedTarget<Target> target(rows, classes, wild);
    OwnedTarget<ClassIndices> second(numbers, classes, wild);
    Array<int32_t> counted(numbers), predicted(with_details ? rows : 0), rank(with_details ? rows : 0);
    Array<Real> weight(numbers), positive(numbers), small(numbers), class_weights(numbers * classes);
    Array<Real> loss(known ? 0 : rows), max(rows), log_sum(rows), nll(with_details ? rows : 0),
        entropy(with_details ? rows : 0);
    fill(logits, wild);
    fill(class_weights, false);
    fill_weights(weight, results);
    for (int64_t i = 0; i < numbers; i++) {
      counted[i] = static_cast<int32_t>(wild ? classes - i % 7 : classes - i % 2);  // none at all, and fewer, too
      positive[i] = static_cast<Real>(1.5);
      small[i] = static_cast<Real>(0.1);
    }
    CrossEntropyOptionRows<Logit, Target> task;
    const auto give = [&](auto& option, const auto& array) {
      option.number = array.get();
      option.rows_per_number = rows_per_number;
    };
    task.logits = logits.get();
    task.target = target.get();
    give(task.row_weight, weight);
    task.rows = rows;
    task.classes = classes;
    task.smoothed_classes = classes;
    task.ceiling = static_cast<Real>(16.1);
    give(task.label_smoothing, small);
    give(task.temperature, positive);
    if (every) {
      if (std::is_same_v<Target, ClassIndices>) {
        give(task.second_label, second.index);
        give(task.mix, small);
      }
      give(task.z_loss, small);
      give(task.margin, small);
      give(task.softcap, positive);
      give(task.num_classes, counted);
      task.class_weights = class_weights.get();
      task.rows_per_class_weights = rows_per_number;
    }
    if (known) {
      for (int64_t i = 0; i < rows; i++) max[i] = log_sum[i] = 2;
      task.known_max = task.known_log_sum = task.known_total = max.get();
      task.gradient = gradient.get();
    } else {
      task.loss = loss.get();
      task.max = max.get();
      task.log_sum = log_sum.get();
      if (with_details) {
        task.nll = nll.get();
        task.entropy = entropy.get();
        task.predicted = predicted.get();
        task.rank = rank.get();
      }
      if (with_gradient) task.gradient = gradient.get();
    }
    run(task, rows);
    loss.require_written("a loss");
    if (!known) max.require_written("a maximum");
    if (!known) log_sum.require_written("a log-sum");
    if (with_details) nll.require_written("an nll");
    if (with_details) entropy.require_written("an entropy");
    if (with_details) rank.require_written("a rank");
    if (with_gradient) gradient.require_written("a gradient");
  }
}

template <class Stored>
Array<Stored> teacher_of(TeacherLogits<Stored>, int64_t size, bool wild) {
  Array<Stored> logits(size);
  fill(logits, wild);
  return logits;
}
template <class Stored>
Array<Stored> teacher_of(ClassProbabilities<Stored>, int64_t size, bool wild) {
  Array<Stored> probabilities(size);
  fill(probabilities, wild);
  for (int64_t i = 0; !wild && i < size; i++) store(probabilities[i], 0.01f * static_cast<float>(i * 31 % 29));
  return probabilities;
}

template <class Divergence, class Logit, class Teacher>
void exercise(const DivergenceRows<Divergence, Logit, Teacher>*, int64_t rows, int64_t classes, bool wild) {
  using Real = Accumulator<Logit>;
  using Stored = typename Teacher::Stored;
  constexpr bool of_logits = std::is_same_v<Teacher, TeacherLogits<Stored>>;
  const int64_t rows_each = rows % 3 ? 1 : 3;
  for (bool with_gradient : {false, true}) {
    Array<Logit> logits(rows * classes), gradient(with_gradient ? rows * classes : 0);
    Array<Stored> teacher = teacher_of(Teacher{}, rows * classes, wild);
    Array<Real> weight(rows), scale(rows / rows_each), beta(1), loss(rows), max(rows), log_sum(rows), total(rows);
    Array<Real> teacher_max(of_logits ? rows : 0), teacher_log_sum(of_logits ? rows : 0);
    fill(logits, wild);
    fill_weights(weight, with_gradient);
    for (int64_t i = 0; i < scale.size(); i++) scale[i] = static_cast<Real>(0.5 + i % 3);
    beta[0] = static_cast<Real>(0.3);
    DivergenceRows<Divergence, Logit, Teacher> all = {};
    all.logits = logits.get();
    all.teacher = Teacher{teacher.get()};
    all.row_weight = {0, weight.get(), 1};
    all.scale = {1, scale.get(), rows_each};
    if (Divergence::parameter_count > 0) all.parameter = {0, beta.get(), rows};
    all.loss = loss.get();
    all.max = max.get();
    all.log_sum = log_sum.get();
    all.teacher_max = of_logits ? teacher_max.get() : nullptr;
    all.teacher_log_sum = of_logits ? teacher_log_sum.get() : nullptr;
    all.total = total.get();
    all.gradient = with_gradient ? gradient.get() : nullptr;
    all.rows = rows;
    all.classes = classes;
    run(all, rows);
    for (const Array<Real>* result : {&loss, &max, &log_sum, &teacher_max, &teacher_log_sum, &total}) {
      result->require_written("a result of rows");
    }
    gradient.require_written("a gradient");
  }
}

template <class... Task>
int exercise_all(List<Task...>) {
  for (int64_t width : kWidths) {
    for (int64_t rows : kRowCounts) {
      if (width > 130 && rows > 3) continue;
      for (bool wild : {false, true}) (exercise(static_cast<const Task*>(nullptr), rows, width, wild), ...);
    }
  }
  return static_cast<int>(sizeof...(Task));
}

// Kernels at random until there were so many runs of them; the number of sizes, types and alignments that were drawn.
template <class... Task>
int64_t exercise_at_random(List<Task...>, uint64_t seed, int64_t wanted) {
  using Exercise = void (*)(int64_t rows, int64_t width, bool wild);
  constexpr Exercise exercises[] = {[](int64_t rows, int64_t width, bool wild) {
    exercise(static_cast<const Task*>(nullptr), rows, width, wild);
  }...};
  std::mt19937_64 random(seed);
  const auto below = [&](uint64_t end) { return static_cast<int64_t>(random() % end); };
  int64_t drawn = 0;
  for (; runs < wanted; drawn++) {
    shift = below(4) ? below(8) : 0;
    first_number = below(7 * 10 * 29);
    // Mostly short rows, as all that is special about a width is below that of a few vectors; some of many vectors.
    const int64_t width = below(8) ? below(140) : below(3000);
    const int64_t rows = width > 140 ? below(4) : below(40);
    exercises[below(sizeof...(Task))](rows, width, below(2));
  }
  return drawn;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3) {
    const int64_t drawn = exercise_at_random(Tasks{}, std::strtoull(argv[1], nullptr, 10), std::atoll(argv[2]));
    std::printf("%lld runs of %lld draws\n", (long long)runs, (long long)drawn);
  } else {
    std::printf("%d kernels\n", exercise_all(Tasks{}));
  }
  return 0;
}
