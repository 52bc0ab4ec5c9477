// A mapped file may be cut short while it is read: then a read past its new end raises SIGBUS. The process then ends with a
// sentence that names the file. Windows does not let a mapped file be cut short: there is nothing to guard.
#include "core/api.hpp"

#if defined(_WIN32)
CUTAWAY_API int32_t cutaway_guard(const void*, size_t, const char*, size_t) { return -1; }
CUTAWAY_API void cutaway_unguard(int32_t) {}
#else
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <mutex>

namespace {

constexpr int kMost = 256;  // files; of more, the rest ends the process without the sentence
constexpr size_t kLongest = 1024;

struct MappedFile {
  volatile uintptr_t start;
  volatile size_t size;  // 0: the place is free
  char sentence[kLongest];
  size_t length;
};

MappedFile files[kMost];
std::mutex changing;
struct sigaction before;
bool installed = false;

void lost(int, siginfo_t* info, void*) {
  const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const MappedFile& file : files) {
    if (at - file.start < file.size) {
      [[maybe_unused]] const auto written = write(STDERR_FILENO, file.sentence, file.length);
      _exit(1);
    }
  }
  sigaction(SIGBUS, &before, nullptr);  // the read is tried again, and fails as it would have without us
}

}  // namespace

// Guards a mapping; `sentence` is what to say. Returns its number for `cutaway_unguard`, -1 if there are too many.
CUTAWAY_API int32_t cutaway_guard(const void* start, size_t size, const char* sentence, size_t length) {
  const std::lock_guard<std::mutex> lock(changing);
  for (int32_t number = 0; number < kMost; ++number) {
    MappedFile& file = files[number];
    if (file.size) continue;
    file.length = length < kLongest ? length : kLongest;
    std::memcpy(file.sentence, sentence, file.length);
    file.start = reinterpret_cast<uintptr_t>(start);
    file.size = size;
    if (!installed) {
      struct sigaction ours = {};
      ours.sa_sigaction = lost;
      ours.sa_flags = SA_SIGINFO;
      installed = !sigaction(SIGBUS, &ours, &before);
    }
    return number;
  }
  return -1;
}

CUTAWAY_API void cutaway_unguard(int32_t number) {
  const std::lock_guard<std::mutex> lock(changing);
  if (number >= 0) files[number].size = 0;
}

#endif
