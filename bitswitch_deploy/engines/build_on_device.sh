#!/bin/sh
# Builds one TensorRT engine for each graph of this package, on the board that will run them:
# an engine works only on the board and with the TensorRT release that built it.
#
#   ./build_on_device.sh            build what is missing or out of date
#   ./build_on_device.sh --force    build everything again
#
# Engines, logs, layer lists and the timing cache go to the folder on_device beside this script.
# Exit codes: 0 every engine is there; 1 a build failed; 2 wrong usage; 3 a graph is not the exported one;
# 4 the board or trtexec is not here.
set -eu

# --- settings of this package
#@SETTINGS@
# --- end of settings

say() {
    printf '%s\n' "$*" >&2
}

refuse() { # exit code, message
    code=$1
    shift
    say "build_on_device.sh: $*"
    exit "$code"
}

check_board() {
    machine=$(uname -m)
    [ "$machine" = "$arch" ] ||
        refuse 4 "this is a $machine machine. Engines for $target are built on the $arch board itself: copy the package there."
    [ -n "$boards" ] || return 0
    device_tree=${BITSWITCH_DEVICE_TREE:-/proc/device-tree/compatible}
    [ -r "$device_tree" ] || refuse 4 "no $device_tree: this is not the board of $target. Copy the package to the board."
    for board in $boards; do
        if tr '\0' '\n' <"$device_tree" | grep -q "$board"; then
            return 0
        fi
    done
    refuse 4 "this board is $(tr '\0' ' ' <"$device_tree"). $target is one of: $boards. Export for this board instead."
}

find_trtexec() {
    if command -v trtexec >/dev/null 2>&1; then
        trtexec=trtexec
    elif [ -x /usr/src/tensorrt/bin/trtexec ]; then
        trtexec=/usr/src/tensorrt/bin/trtexec
    else
        refuse 4 "trtexec is neither in PATH nor in /usr/src/tensorrt/bin. Install it: sudo apt install tensorrt"
    fi
}

# The banner says v8502 (8.5.2), v100300 (10.3.0) or v11.1.0.106. Sets `version` (10.3.0) and `number` (100300).
read_version() {
    banner=$("$trtexec" --help 2>&1 | sed -n 's/.*\[TensorRT v\([0-9.]*\)\].*/\1/p' | sed 1q)
    case $banner in
    '')
        refuse 4 "cannot read the TensorRT version from: $trtexec --help"
        ;;
    *.*.*)
        version=$(printf '%s' "$banner" | cut -d. -f1-3)
        ;;
    ????)
        version=$((banner / 1000)).$((banner / 100 % 10)).$((banner % 100))
        ;;
    *)
        version=$((banner / 10000)).$((banner / 100 % 100)).$((banner % 100))
        ;;
    esac
    number=$(printf '%s' "$version" | awk -F. '{ print $1 * 10000 + $2 * 100 + $3 }')
    [ "$number" -ge 80500 ] || refuse 4 "TensorRT $version is too old. 8.5 or newer is needed."
}

# Precision flags: needed for Q/DQ graphs before 10.12, replaced by strong typing there, gone in 11.0.
choose_flags() {
    if [ "$number" -lt 101200 ]; then
        flags=$legacy_flags
    elif [ "$number" -lt 110000 ]; then
        flags=--stronglyTyped
    else
        flags=
    fi
    if [ "$number" -lt 80600 ]; then
        flags="$flags --buildOnly"
    else
        flags="$flags --skipInference"
    fi
    [ -z "$workspace_mb" ] || flags="$flags --memPoolSize=workspace:$workspace_mb"
    [ -z "$min_shapes" ] || flags="$flags --minShapes=$min_shapes --optShapes=$opt_shapes --maxShapes=$max_shapes"
    flags="$flags --profilingVerbosity=detailed"
}

failed() { # label, reason
    say "$1: FAILED: $2. The log is $log; it ends with:"
    tail -n 5 "$log" >&2
    failures=$((failures + 1))
}

build() { # label, file, sha256
    label=$1 file=$2 sum=$3
    log=$out/$label.log plan=$out/$label.plan partial=$out/.$label.plan.partial-$$
    stamp="TensorRT $version, graph $sum, flags $flags"
    [ -f "$here/$file" ] || refuse 3 "$file is missing. Export the package again."
    [ "$(sha256sum <"$here/$file" | cut -d' ' -f1)" = "$sum" ] ||
        refuse 3 "$file is not the graph that was exported. Export the package again."
    if [ "$force" = no ] && [ -f "$plan" ] && [ -f "$plan.stamp" ] && [ "$(cat "$plan.stamp")" = "$stamp" ]; then
        say "$label: up to date"
        return 0
    fi
    say "$label: building, this takes minutes (log: $log)"
    set -- "--onnx=$here/$file" "--saveEngine=$partial" "--timingCacheFile=$out/timing-$version.cache"
    set -- "$@" "--exportLayerInfo=$out/$label.layers.json"
    for flag in $flags; do
        set -- "$@" "$flag"
    done
    if ! "$trtexec" "$@" >"$log" 2>&1 </dev/null; then
        failed "$label" "trtexec refused the graph or ran out of memory"
    elif grep -q -e 'UINT8 zero_point' -e 'will use INT8 instead' -e 'Defaulting to INT8' "$log"; then
        failed "$label" "TensorRT reads UINT8 codes of this graph as INT8, which destroys half of their range"
    elif [ ! -s "$partial" ]; then
        failed "$label" "trtexec wrote no engine"
    else
        mv -f "$partial" "$plan"
        printf '%s\n' "$stamp" >"$plan.stamp"
        say "$label: $plan"
    fi
    rm -f "$partial"
}

force=no
case "$#:${1-}" in
0:) ;;
1:--force) force=yes ;;
*) refuse 2 "unknown arguments: $*. Allowed: --force" ;;
esac

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=$here/on_device
failures=0
check_board
find_trtexec
read_version
choose_flags
say "$target: TensorRT $version on this board; the graphs were made for $made_for"
mkdir -p "$out"
exec 9>"$out/.lock"
if command -v flock >/dev/null 2>&1; then
    flock -n 9 || refuse 4 "another build is running in $out. Wait for it."
fi
rm -f "$out"/.*.plan.partial-* # of a killed run
partial=
trap 'rm -f "$partial"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
while read -r label file sum; do
    build "$label" "$file" "$sum"
done <<END
$graphs
END
[ "$failures" = 0 ] || refuse 1 "$failures of the engines could not be built"
