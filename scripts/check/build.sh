#!/usr/bin/env bash
# Proves the three ways in which Cutaway installs, each as a new user would: a fresh copy of the tree, a new
# virtual environment, an empty home, and the one command `pip install -e .`.
#
#   scripts/check/build.sh [gxx] [zig] [pure]      all three without arguments
#
#   gxx    a C++20 compiler is there: the native core is built with it
#   zig    none is there: pip takes one from the package index (about 150 MB) and builds the core with it
#   pure   CUTAWAY_PURE=1: no core; the reference implementations serve, and the package says why
#
# QUICK=1 installs numpy and no other dependency, which leaves torch out. As root on Linux the compilers'
# folders and the system's headers are hidden in a mount namespace; otherwise compilers are only left off
# PATH. Prints PASS or FAIL with the seconds of each install, and exits 1 if one failed; a failed install's
# log is shown.
set -euo pipefail

tree=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${PYTHON:-$(python3 -c 'import sys; print(sys.executable)')}
export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$("$python" -m pip cache dir)}

probe='
import sys, warnings
import numpy as np
from cutaway import native
from cutaway.gguf import TYPES, Packed
from cutaway.quantization import formats

warnings.simplefilter("ignore")
expected = sys.argv[1] == "native"
assert native.available() == expected, native.unavailable_reason()
if not expected:
    assert "CUTAWAY_PURE was set when Cutaway was installed" in native.unavailable_reason(), native.unavailable_reason()
data = np.random.default_rng(0).integers(0, 120, (8, TYPES["Q4_K"].bytes), dtype=np.uint8)
packed = Packed("Q4_K", (8, 256), data)
assert (formats.unpack(packed) == formats.unpack_reference(packed)).all()
print(native.isa(), "-", native.unavailable_reason() or "the native core is there")
'

copy_tree() {
    mkdir -p "$1"
    git -C "$tree" ls-files --cached --others --exclude-standard -z |
        (cd "$tree" && xargs -0 sh -c 'for f; do [ -e "$f" ] && printf "%s\0" "$f"; done' sh) |
        tar -C "$tree" --null -T - -cf - | tar -C "$1" -xf -
}

# A folder with every program of PATH but compilers, so that it can stand for PATH.
programs_without_compilers() {
    mkdir -p "$1"
    local folder
    for folder in ${PATH//:/ }; do
        [ -d "$folder" ] || continue
        find "$folder" -maxdepth 1 ! -type d -perm -u+x \
            ! -name '*c++*' ! -name '*g++*' ! -name '*gcc*' ! -name '*clang*' ! -name 'cc' ! -name 'c[89]9' \
            ! -name 'cpp*' ! -name 'cmake*' ! -name 'ninja*' -exec sh -c \
            'for f; do [ -e "$0/${f##*/}" ] || ln -s "$f" "$0/${f##*/}"; done' "$1" {} +
    done
}

# Runs a command with no compiler in sight.
without_compilers() {
    local programs=$scratch/programs empty=$scratch/empty
    mkdir -p "$empty"
    [ -d "$programs" ] || programs_without_compilers "$programs"
    if [ "$(id -u)" = 0 ] && unshare -m true 2>/dev/null; then
        unshare -m env PATH="$programs" sh -c '
            empty=$1; shift
            for folder in /usr/include /usr/local/include /usr/lib/gcc /usr/libexec/gcc /usr/lib/llvm*; do
                if [ -d "$folder" ]; then mount --bind "$empty" "$folder"; fi
            done
            exec "$@"' sh "$empty" "$@"
    else
        env PATH="$programs" "$@"
    fi
}

install_and_probe() {
    local name=$1 expected=$2
    shift 2
    local work=$scratch/$name
    copy_tree "$work/tree"
    mkdir -p "$work/home"
    "$python" -m venv "$work/venv"
    local arguments=(-e .)
    if [ "${QUICK:-0}" = 1 ]; then
        "$work/venv/bin/pip" install -q numpy
        arguments=(--no-deps -e .)
    fi
    local start=$SECONDS
    if (cd "$work/tree" && "$@" env HOME="$work/home" "$work/venv/bin/pip" install -v "${arguments[@]}") \
        >"$work/log" 2>&1 &&
        printed=$(cd "$work/home" && "$work/venv/bin/python" -c "$probe" "$expected" 2>&1); then
        echo "PASS $name $((SECONDS - start)) s: $printed"
        rm -rf "$work"
        return
    fi
    echo "FAIL $name $((SECONDS - start)) s: ${printed:-}"
    tail -n 60 "$work/log"
    failed=1
}

failed=0
printed=
[ $# -gt 0 ] || set -- gxx zig pure
for name in "$@"; do
    case $name in
        gxx) install_and_probe gxx native env ;;
        zig) install_and_probe zig native without_compilers ;;
        pure) install_and_probe pure reference env CUTAWAY_PURE=1 ;;
        *) echo "no such install: $name (gxx, zig, pure)" >&2; exit 2 ;;
    esac
done
exit "$failed"
