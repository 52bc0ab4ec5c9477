#!/usr/bin/env bash
# Runs the native core's tests under AddressSanitizer with UndefinedBehaviorSanitizer, then ThreadSanitizer.
#
#   scripts/check/sanitize.sh [address,undefined] [thread]      both without arguments
#   TESTS=tests/test_quant.py scripts/check/sanitize.sh         those tests alone
#
# Needs CMake, a g++ that has the sanitizers' libraries (CXX names another), and a Python with Cutaway's
# test dependencies (PYTHON names another). The sanitized library is beside a copy of the package in a
# temporary folder. In it AMX is C++ (native/check/tiles.hpp), since no sanitizer looks into an instruction.
set -euo pipefail

tree=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${PYTHON:-python3}
compiler=${CXX:-g++}

# An editable install finds the package before PYTHONPATH does, and with it a library that is not sanitized.
start="
import sys
sys.meta_path = [each for each in sys.meta_path if 'editable' not in type(each).__module__]
import os, cutaway, pytest
assert cutaway.__file__.startswith(os.environ['PYTHONPATH']), cutaway.__file__
sys.exit(pytest.main(sys.argv[1:]))
"

check() {
    local kinds=$1 work=$scratch/$1 library preload
    mkdir -p "$work"
    cp -r "$tree/cutaway" "$tree/tests" "$work"
    rm -f "$work/cutaway/_core.so"
    cmake -S "$tree" -B "$work/build" -DCMAKE_CXX_COMPILER="$compiler" -DCUTAWAY_SANITIZE="$kinds" >/dev/null
    cmake --build "$work/build" >/dev/null
    cp "$work/build/_core.so" "$work/cutaway/_core.so"
    # Python itself is not sanitized, so the run-time library must be there before it starts. -s: a report
    # must reach the terminal, though it ends the process.
    case $kinds in
        thread) library=libtsan.so ;;
        *) library=libasan.so ;;
    esac
    # Where the compiler does not have the file it prints the bare name.
    preload=$("$compiler" -print-file-name=$library)
    [ "$preload" != $library ] || { echo "$compiler has no $library" >&2; exit 1; }
    # What is thrown in torch passes AddressSanitizer, which looks for the C++ library when it starts.
    preload+=" $("$compiler" -print-file-name=libstdc++.so.6)"
    echo "== $kinds"
    (cd "$work" && env LD_PRELOAD="$preload" PYTHONPATH="$work" \
        PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1 \
        ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 \
        TSAN_OPTIONS=halt_on_error=1:abort_on_error=0:die_after_fork=0:report_signal_unsafe=0 \
        "$python" -c "$start" -q -s -p no:cacheprovider -c /dev/null --rootdir "$work" $2)
}

# Those of the runtime's tests that compute little in torch and numpy, which are not sanitized: products of every type by
# every instruction set, every shape of model, each cache of keys and values, recurrences, latents, LongRoPE.
runtime=
for name in panels_are largest_numbers references_products how_a_text_is_cut state_forgets that_are_no_numbers does_not_fit \
    recurrent_state recurrent_model latent_attention_caches outgrows_longropes rotate_otherwise smaller_kv_cache; do
    runtime+=" $(grep -o "def test_[a-z_]*$name[a-z_]*" "$tree/tests/test_runtime.py" | sed 's|^def |tests/test_runtime.py::|')"
done
runtime+=" tests/test_runtime_pages.py"
# Training's products of tiles, attention, loss, norms, activations and rotations.
trained="tests/test_native_product.py tests/test_native_loss.py tests/test_native_elementwise.py"
# The definitions' tests are single-threaded numpy; under ThreadSanitizer only the core's checks', the runtime's, and threads
# that share a cache of pieces or count words side by side, say something.
shared="tests/test_fast.py::test_threads_and_long_texts_change_nothing"
counted="tests/test_counts.py::test_long_texts_are_the_same_on_every_number_of_threads"
encoding="tests/test_quant.py tests/test_scan.py tests/test_fast.py"

[ $# -gt 0 ] || set -- address,undefined thread
for kinds in "$@"; do
    case $kinds in
        # ThreadSanitizer has a thread of its own, which the test of where workers run takes for one of ours.
        thread)
            tests="tests/test_native.py $shared $counted $runtime $trained"
            tests+=" --deselect tests/test_native.py::test_no_worker_waits_for_its_callers_processor"
            ;;
        *) tests="tests/test_native.py $encoding tests/test_counts.py tests/test_training.py $runtime $trained" ;;
    esac
    check "$kinds" "${TESTS:-$tests}"
done
