// Adds two arrays into a third one: `arrays conflict|padded PASSES`.
//
// In the first case the arrays are 8 MiB apart, so that the three pages in use at a time share one
// place in any table that is indexed by low bits of the page number. In the second case each array
// is a few pages further, and they do not.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { STRIDE = 8 << 20, COUNT = 1 << 17, PAGE = 4096 };

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  const size_t padding = strcmp(argv[1], "padded") == 0 ? 37 * PAGE : 0;
  const long passes = strtol(argv[2], NULL, 10);
  const size_t step = STRIDE + padding;
  char *base = mmap(NULL, 3 * step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return 1;
  volatile uint64_t *a = (uint64_t *)base;
  volatile uint64_t *b = (uint64_t *)(base + step);
  volatile uint64_t *c = (uint64_t *)(base + 2 * step);
  for (size_t i = 0; i < COUNT; i++) {
    a[i] = i;
    b[i] = i * i;
  }
  for (long pass = 0; pass < passes; pass++)
    for (size_t i = 0; i < COUNT; i++) c[i] += a[i] + b[i];
  uint64_t sum = 0;
  for (size_t i = 0; i < COUNT; i++) sum = sum * 31 + c[i];
  printf("%llx\n", (unsigned long long)sum);
  return 0;
}
