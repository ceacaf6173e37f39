/* The founding losses and their derivatives, one element at a time, as their definition states them: `prediction` is
 * what the softmax or the sigmoid gave, `n` the batch size. Written for the tests, in double precision; nothing here is
 * shared with the library. */
#include <math.h>

static const double smallest = 1e-7;

static double bounded(double probability, double least, double most) {
  if (probability < least) return least;
  if (probability > most) return most;
  return probability;
}

double mse(double prediction, double target, double n) {
  const double difference = prediction - target;
  return difference * difference / 2 / n;
}

double d_mse(double prediction, double target, double n) { return (prediction - target) / n; }

double categorical_cross_entropy(double prediction, double target, double n) {
  return -target * log(bounded(prediction, smallest, 1)) / n;
}

double d_categorical_cross_entropy(double prediction, double target, double n) { return (prediction - target) / n; }

double binary_cross_entropy(double prediction, double target, double n) {
  const double t = bounded(prediction, smallest, 1 - smallest);
  return (-target * log(t) - (1 - target) * log(1 - t)) / n;
}

double d_binary_cross_entropy(double prediction, double target, double n) { return (prediction - target) / n; }
