#!/usr/bin/env bash
# Builds the wheel for 64-bit ARM with a cross compiler, and tries it in an emulated Debian with Python 3.13.
#
#   apt-get install g++-aarch64-linux-gnu qemu-user-binfmt mmdebstrap && scripts/check/aarch64.sh [FOLDER]
#
# As root on x86-64; half an hour, since the emulator takes 20 times as long as a processor. FOLDER keeps the root and the
# wheel for the next time. The wheel's own test runs, and `cutaway doctor`, which holds the core to its reference
# implementation. scripts/check/neon.sh compares the kernels themselves.
set -euo pipefail

tree=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
[ $# -gt 0 ] || trap 'rm -rf "$folder"' EXIT
root=$folder/root
python=${PYTHON:-python3}

# The kernel hands programs for ARM to the emulator, also those that Python starts.
binfmt=/proc/sys/fs/binfmt_misc
[ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt
[ -e $binfmt/qemu-aarch64 ] || cat /usr/lib/binfmt.d/qemu-aarch64.conf > $binfmt/register

if ! compgen -G "$folder/*.whl" >/dev/null; then
    mkdir -p "$folder/tree"
    git -C "$tree" archive HEAD | tar -x -C "$folder/tree"
    QEMU_LD_PREFIX=/usr/aarch64-linux-gnu CXX=aarch64-linux-gnu-g++ _PYTHON_HOST_PLATFORM=linux-aarch64 \
        "$python" -m pip wheel -q --no-deps -w "$folder" "$folder/tree"
fi
wheel=$(compgen -G "$folder/*.whl")
case $wheel in *-py3-none-linux_aarch64.whl) ;; *) echo "$wheel: the core was not built for ARM" >&2; exit 1 ;; esac

if ! [ -x "$root/usr/bin/python3.13" ]; then
    mmdebstrap --quiet --arch=arm64 --variant=extract --include=python3.13,libstdc++6 trixie "$root"
    ln -sfn usr/lib "$root/lib"  # what the packages' own scripts, which do not run, would have made
fi
if ! [ -d "$root/site/cutaway" ]; then
    needs=$("$python" -c 'import sys, tomllib; print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], sep="\n")' \
        "$tree/pyproject.toml")
    platforms=()
    for one in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do platforms+=(--platform "${one}_aarch64"); done
    "$python" -m pip install -q --target "$root/site" --only-binary=:all: --python-version 3.13 --implementation cp \
        "${platforms[@]}" -r <(echo "$needs")
    "$python" -m zipfile -e "$wheel" "$root/site"
fi
cp "$tree/tests/wheel.py" "$root/wheel.py"
run() { PYTHONPATH=/site HOME=/tmp CUTAWAY_HOME=/tmp/cutaway chroot "$root" /usr/bin/python3.13 "$@"; }
run /wheel.py
run -m cutaway doctor
