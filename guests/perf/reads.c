// Reads a block device past the guest's page cache: `reads sequential|random DEVICE MEBIBYTES`.
//
// Sequential reads are of 1 MiB; random ones of 4 KiB, 64 for each mebibyte given.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MIB = 1 << 20, BLOCK = 4096 };

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  const int random = strcmp(argv[1], "random") == 0;
  const long mebibytes = strtol(argv[3], NULL, 10);
  const int device = open(argv[2], O_RDONLY | O_DIRECT);
  char *buffer = aligned_alloc(BLOCK, MIB);
  if (device < 0 || !buffer || mebibytes <= 0) return 1;
  const size_t size = random ? BLOCK : MIB;
  const long count = random ? mebibytes * 64 : mebibytes;
  uint64_t state = 88172645463325252u, sum = 0;
  for (long i = 0; i < count; i++) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    const uint64_t block = random ? state % ((uint64_t)mebibytes * (MIB / BLOCK)) : 0;
    const off_t offset = random ? (off_t)(block * BLOCK) : (off_t)i * MIB;
    if (pread(device, buffer, size, offset) != (ssize_t)size) return 1;
    for (size_t at = 0; at < size; at += 512) sum = sum * 31 + (unsigned char)buffer[at];
  }
  printf("%llx\n", (unsigned long long)sum);
  return 0;
}
