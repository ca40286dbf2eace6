#!/bin/sh
# Builds the TensorRT engines of this package with trtexec, on the board that will run them: one for each width, and the
# FP16 reference to compare with. An engine works only on the board and with the TensorRT release that built it.
#
#   ./build_on_device.sh                build what is missing or out of date
#   ./build_on_device.sh --force        build everything again
#   ./build_on_device.sh --fp32         neither float16 nor TF32 in the quantized engines
#   ./build_on_device.sh --dla          run what it can on DLA core 0, batch 1, and the rest on the GPU
#   ./build_on_device.sh --workspace N  memory for trying tactics, in MB
#   ./build_on_device.sh --timeout N    give one engine N minutes (default: 120)
#
# Engines, their records, logs and layer lists go to the folder on_device beside this script, the timing cache to the
# user's cache folder. Exit codes: 0 every engine is there; 1 a build failed; 2 wrong usage; 3 a graph is not the
# exported one; 4 the board or trtexec is not here.
set -eu

# --- settings of this package
#@SETTINGS@
# --- end of settings

device_tree=${BITSWITCH_DEVICE_TREE:-/proc/device-tree/compatible}
tegra_release=${BITSWITCH_TEGRA_RELEASE:-/etc/nv_tegra_release}

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
    [ "$number" -ge 80200 ] || refuse 4 "TensorRT $version is too old. 8.2 or newer is needed."
}

# What decides whether an engine fits a machine; empty where the machine does not tell it.
read_device() {
    module='' sm='' l4t='' power_mode=''
    if [ -r "$device_tree" ]; then
        names=$(tr '\0' '\n' <"$device_tree" | tr '+' '\n' | sed 's/^nvidia,//; s/-super$//')
        case $names in
        *tegra194*) sm=7.2 ;;
        *tegra234*) sm=8.7 ;;
        *tegra264*) sm=11.0 ;;
        esac
        module=$(printf '%s\n' "$names" | grep -E '^p[0-9]+-[0-9]+$' | tail -n 1) || module=''
    fi
    if [ -r "$tegra_release" ]; then
        l4t=$(sed -n 's/.*R\([0-9]*\) (release), REVISION: \([0-9][0-9]*\(\.[0-9][0-9]*\)*\).*/\1.\2/p' "$tegra_release" | sed 1q)
    fi
    if command -v nvpmodel >/dev/null 2>&1; then
        power_mode=$(nvpmodel -q 2>/dev/null | sed -n 's/.*NV Power Mode: *\([^ ]*\).*/\1/p' | sed 1q)
    fi
}

safe() { # a part of a file name
    printf '%s' "$1" | tr -cs 'A-Za-z0-9.' '_'
}

# The same place and name as `bitswitch-deploy build` takes: what was measured holds for a device, release and power mode.
choose_timing_cache() {
    case ${XDG_CACHE_HOME-} in
    /*) folder=$XDG_CACHE_HOME/bitswitch-deploy ;;
    *) folder=${HOME:+$HOME/.cache/bitswitch-deploy} ;;
    esac
    { [ -n "$folder" ] && mkdir -p "$folder" 2>/dev/null && [ -w "$folder" ]; } || folder=$out
    timing_cache=$folder/tensorrt-$version-$(safe "${module:-$arch}")${power_mode:+-$(safe "$power_mode")}.timing
}

is_dla_release() {
    for rule in $dla_rules; do
        fits=yes
        for clause in $(printf '%s' "$rule" | tr ',' ' '); do
            case $clause in
            '<'*) [ "$number" -lt "${clause#<}" ] || fits=no ;;
            '>='*) [ "$number" -ge "${clause#>=}" ] || fits=no ;;
            esac
        done
        [ "$fits" = no ] || return 0
    done
    return 1
}

check_dla() {
    [ "$dla" = yes ] || return 0
    [ -n "$dla_rules" ] || refuse 4 "--dla: $target has no DLA cores. Leave it out: the GPU runs every layer."
    is_dla_release ||
        refuse 4 "--dla: TensorRT $version does not drive the DLA cores of $target ($dla_rules). Leave it out."
    # static shapes only
    opt_shapes=$min_shapes max_shapes=$min_shapes
}

# Precision flags: needed for Q/DQ graphs before 10.12, replaced by strong typing there, gone in 11.0. Sets `names`, as
# recorded, and `flags`, as trtexec takes them.
choose_flags() { # role
    names='' flags=''
    if [ "$number" -ge 101200 ]; then
        names=STRONGLY_TYPED
        [ "$number" -ge 110000 ] || flags=--stronglyTyped
    elif [ "$1" = reference ]; then
        names=FP16 flags=--fp16
    else
        for flag in $legacy_flags; do
            if [ "$fp32" = no ] || [ "$flag" != FP16 ]; then
                names="$names $flag" flags="$flags --$(printf '%s' "$flag" | tr '[:upper:]' '[:lower:]')"
            fi
        done
    fi
    if [ "$fp32" = yes ] && [ "$1" != reference ]; then
        names="$names NO_TF32" flags="$flags --noTF32"
    fi
    if [ "$dla" = yes ]; then
        names="$names GPU_FALLBACK" flags="$flags --useDLACore=0 --allowGPUFallback"
    fi
    names=$(printf '%s\n' "$names" | tr ' ' '\n' | grep . | LC_ALL=C sort | tr '\n' ' ') || names=''
    if [ "$number" -lt 80600 ]; then
        flags="$flags --buildOnly"
    else
        flags="$flags --skipInference"
    fi
    if [ "$number" -lt 80400 ]; then
        workspace=--workspace=
    else
        workspace=--memPoolSize=workspace:
    fi
    [ -z "$workspace_mb" ] || flags="$flags $workspace$workspace_mb"
    [ -z "$min_shapes" ] || flags="$flags --minShapes=$min_shapes --optShapes=$opt_shapes --maxShapes=$max_shapes"
    flags="$flags --profilingVerbosity=detailed"
}

check_fp32() {
    if [ "$fp32" = yes ] && [ "$has_half" = yes ]; then
        refuse 2 "--fp32: these graphs hold float16 themselves, which no flag takes back. Export with --strict."
    fi
}

quoted() { # a JSON string, or null
    if [ -n "$1" ]; then
        printf '"%s"' "$1"
    else
        printf 'null'
    fi
}

list() { # a JSON list of the other arguments, as it stands in a recipe
    if [ $# = 0 ]; then
        printf '[]'
        return
    fi
    separator='['
    for item in "$@"; do
        printf '%s\n      "%s"' "$separator" "$item"
        separator=,
    done
    printf '\n    ]'
}

hash_of() {
    sha256sum <"$1" | cut -d' ' -f1
}

# The record of an engine, in the words and the layout of `bitswitch-deploy build`.
record() { # engine, tool, hash of the timing cache as JSON
    # flags, hashes and shapes are lists of words
    # shellcheck disable=SC2086
    cat <<RECORD
{
  "label": "$label",
  "sha256": "$(hash_of "$1")",
  "size_bytes": $(wc -c <"$1" | tr -d ' '),
  "tool": "$2",
  "recipe": {
    "graph_sha256": $(list $sums),
    "module": "tensorrt",
    "version": "$version",
    "flags": $(list $names),
    "shapes": $(list $min_shapes $opt_shapes $max_shapes),
    "workspace_mb": ${workspace_mb:-null},
    "dla_core": $([ "$dla" = yes ] && printf 0 || printf null),
    "device": {
      "arch": "$arch",
      "module": $(quoted "$module"),
      "sm": $(quoted "$sm"),
      "l4t": $(quoted "$l4t"),
      "power_mode": $(quoted "$power_mode")
    },
    "compute_capabilities": []
  },
  "timing_cache_sha256": $3,
  "schema": "bitswitch-engine/1"
}
RECORD
}

is_current() {
    [ "$force" = no ] && [ -f "$plan" ] && [ -f "$plan.json" ] || return 1
    tool=$(sed -n 's/^  "tool": "\(.*\)",$/\1/p' "$plan.json")
    cache=$(sed -n 's/^  "timing_cache_sha256": \(.*\),$/\1/p' "$plan.json")
    [ "$(record "$plan" "$tool" "$cache")" = "$(cat "$plan.json")" ]
}

check_graph() { # file, sha256
    [ -f "$here/$1" ] || refuse 3 "$1 is missing. Export the package again."
    [ "$(hash_of "$here/$1")" = "$2" ] || refuse 3 "$1 is not the graph that was exported. Export the package again."
}

failed() { # reason
    say "$label: FAILED: $1. The log is $log; it ends with:"
    tail -n 5 "$log" >&2
    failures=$((failures + 1))
}

# A shell that waits hears a signal at once, one that runs a command when the command has ended.
child=
run_trtexec() {
    if timeout --foreground 5 true 2>/dev/null; then
        timeout --foreground -k 30 "$((minutes * 60))" "$trtexec" "$@" >"$log" 2>&1 </dev/null &
    else
        "$trtexec" "$@" >"$log" 2>&1 </dev/null &
    fi
    child=$! ended=0
    wait "$child" || ended=$?
    child=
    return "$ended"
}

stop() { # exit code
    trap '' INT TERM HUP
    if [ -n "$child" ]; then
        kill "$child" 2>/dev/null || :
        wait "$child" || :
    fi
    exit "$1"
}

list_fallback() {
    rm -f "$out/$stem.gpu-fallback.txt"
    [ "$dla" = yes ] || return 0
    grep -e 'falling back to GPU' -e 'device type to GPU' -e 'Switching to GPU' "$log" >"$out/$stem.gpu-fallback.txt" || :
    say "$label: $(wc -l <"$out/$stem.gpu-fallback.txt" | tr -d ' ') layers fall back to the GPU: $out/$stem.gpu-fallback.txt"
}

# An engine that was cut short need not be an error to trtexec, and its log may be cut as well.
is_full() {
    free_kb=$(df -Pk "$out" 2>/dev/null | awk 'NR == 2 { print $4 }') || free_kb=
    [ "${free_kb:-1024}" -lt 1024 ] || grep -q 'No space left on device' "$log"
}

full='the disk is full: free some space, then run this again. Engines that are done stay'

why_failed() { # exit code of trtexec, seconds that it took
    # one that does not listen is killed as well, and ends with the code of one that the system killed
    if [ "$1" = 124 ] || { [ "$1" = 137 ] && [ "$2" -ge $((minutes * 60)) ]; }; then
        printf '%s' "not done after $minutes minutes: it hangs, or needs a longer --timeout"
    elif is_full; then
        printf '%s' "$full"
    elif [ "$1" = 137 ]; then
        printf '%s' "trtexec was killed, as the system does when memory runs out: end other programs, or --workspace MB"
    elif grep -q -i -e 'out of memory' -e 'OutOfMemory' -e 'cudaError 2:' "$log"; then
        printf '%s' "out of memory: end other programs, the desktop first, or build with less: --workspace MB"
    elif grep -q 'Could not find any implementation.*insufficient workspace' "$log"; then
        printf '%s' "too little workspace for a layer: build with more: --workspace MB"
    else
        printf '%s' "trtexec refused the graph"
    fi
}

build() { # label, role, file, sha256, and the same of a data file where there is one
    label=$1 role=$2 file=$3 sums=$4
    check_graph "$3" "$4"
    if [ -n "${6-}" ]; then
        check_graph "$5" "$6"
        sums="$4 $6"
    fi
    stem=$(basename "$file" .onnx)
    log=$out/$stem.log plan=$out/$stem.engine partial=$out/.$stem.engine.partial-$$
    choose_flags "$role"
    if is_current; then
        say "$label: up to date"
        return 0
    fi
    say "$label: building, this takes minutes (log: $log)"
    set -- "--onnx=$here/$file" "--saveEngine=$partial" "--timingCacheFile=$timing_cache"
    set -- "$@" "--exportLayerInfo=$partial.layers.json"
    for flag in $flags; do
        set -- "$@" "$flag"
    done
    code=0 began=$(date +%s)
    run_trtexec "$@" || code=$?
    if [ "$code" != 0 ] && [ -e "$timing_cache" ] && grep -q 'TimingCache creation failed' "$log"; then
        say "$label: $timing_cache is damaged, so it is not used and started again"
        rm -f "$timing_cache"
        code=0 began=$(date +%s)
        run_trtexec "$@" || code=$?
    fi
    if [ "$code" != 0 ]; then
        failed "$(why_failed "$code" $(($(date +%s) - began)))"
    elif grep -q -e 'UINT8 zero_point' -e 'will use INT8 instead' -e 'Defaulting to INT8' "$log"; then
        failed "TensorRT reads UINT8 codes of this graph as INT8, which destroys half of their range"
    elif [ ! -s "$partial" ]; then
        failed "trtexec wrote no engine"
    elif is_full || ! describe; then
        failed "$full"
    else
        # the record last: an engine without one is built again; what `build` read back is of the engine before
        rm -f "$plan.json" "$plan.layers.json" "$out/$stem.layers.json"
        mv -f "$partial" "$plan"
        [ ! -f "$partial.layers.json" ] || mv -f "$partial.layers.json" "$out/$stem.layers.json"
        mv -f "$partial.json" "$plan.json"
        list_fallback
        say "$label: $plan"
    fi
    rm -f "$partial" "$partial.json" "$partial.layers.json"
}

# Write the record of the engine that was just built beside it.
describe() {
    cache=null
    [ ! -f "$timing_cache" ] || cache=\"$(hash_of "$timing_cache")\"
    record "$partial" trtexec "$cache" >"$partial.json" 2>/dev/null
}

usage() {
    refuse 2 "unknown arguments: $*. Allowed: --force, --fp32, --dla, --workspace MB, --timeout MINUTES"
}

force=no dla=no minutes=120
while [ $# -gt 0 ]; do
    case $1 in
    --force) force=yes ;;
    --fp32) fp32=yes ;;
    --dla) dla=yes ;;
    --workspace | --timeout)
        case ${2-} in
        '' | *[!0-9]* | 0* | ????????*) usage "$@" ;;
        esac
        if [ "$1" = --workspace ]; then
            workspace_mb=$2
        else
            minutes=$2
        fi
        shift
        ;;
    *) usage "$@" ;;
    esac
    shift
done

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=$here/on_device
failures=0
check_board
find_trtexec
read_version
read_device
check_dla
check_fp32
say "$target: TensorRT $version on this board; the graphs were made for $made_for"
mkdir -p "$out"
exec 9>>"$out/.lock"
if command -v flock >/dev/null 2>&1; then
    flock -n 9 || refuse 4 "another build is running in $out. Wait for it."
fi
rm -f "$out"/.*.engine.partial-* # of a killed run
choose_timing_cache
partial=
trap 'rm -f "$partial" "$partial.json" "$partial.layers.json"' EXIT
trap 'stop 130' INT
trap 'stop 143' TERM HUP
while read -r label role file sums; do
    # the rest of a line is one or two hashes, with the name of the data file between them
    # shellcheck disable=SC2086
    build "$label" "$role" "$file" $sums
done <<END
$graphs
END
[ "$failures" = 0 ] || refuse 1 "$failures of the engines could not be built"
