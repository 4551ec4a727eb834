#!/usr/bin/env bash
# The programs that tests, demo and bench use beside Go, make and git, and the Debian packages they come in.
#
#   deps.sh [PROGRAM...]             is everything there? Says what to install and exits 1 if not
#   deps.sh --install [PROGRAM...]   installs what is missing (root)
#   deps.sh --root [PROGRAM...]      the same, and are we root?
#   deps.sh --run COMMAND... -- PROGRAM...
#                                    runs COMMAND if everything is there; otherwise says what to install and
#                                    exits 0, or 1 in CI, where nothing may be left out
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

# program  package; those with a third word (what for) are not looked for unless they are named
table='
nbdinfo    libnbd-bin
nbdcopy    libnbd-bin
nbdsh      python3-libnbd
qemu-img   qemu-utils
qemu-io    qemu-utils
nbd-client nbd-client
fio        fio
nbdkit     nbdkit
mkfs.ext4  e2fsprogs
e2fsck     e2fsprogs
mkfs.xfs   xfsprogs
ip         iproute2
nft        nftables
qemu-system-x86_64 qemu-system-x86 lab
busybox    busybox-static lab
crun       crun           lab
modprobe   kmod           lab
cpio       cpio           lab
readelf    binutils       lab
lz4        lz4            lab
xz         xz-utils       lab
mmdebstrap mmdebstrap     lab
systemd-analyze systemd   deploy
promtool   prometheus     deploy
'

package_of() { awk -v p="$1" '$1 == p {print $2}' <<<"$table"; }

# missing PROGRAM... prints the packages that are not installed, each once.
missing() {
  local p
  for p in "$@"; do
    command -v "$p" >/dev/null || package_of "$p"
  done | sort -u | tr '\n' ' '
}

mode=check command=()
case ${1-} in
--install) mode=install; shift ;;
--root)
  shift
  [ "$(id -u)" = 0 ] || { echo "needs root, for network namespaces" >&2; exit 1; }
  ;;
--run)
  mode=run; shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do command+=("$1"); shift; done
  [ $# -eq 0 ] || shift
  ;;
esac
[ $# -gt 0 ] || set -- $(awk 'NF == 2 {print $1}' <<<"$table")

packages=$(missing "$@")
if [ -n "$packages" ] && { [ "$mode" = install ] || { [ -n "${CI-}" ] && [ "$(id -u)" = 0 ]; }; }; then
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # services that come along are not started
  apt-get -qq update
  # shellcheck disable=SC2086 # a list of package names
  apt-get -qq install -y --no-install-recommends $packages
  packages=$(missing "$@")
fi

if [ -z "$packages" ]; then
  [ "$mode" != run ] || exec "${command[@]}"
  exit 0
fi
{
  [ "$mode" != run ] || echo "left out: ${command[*]}"
  echo "needs programs that are not here; on Debian: sudo apt-get install $packages"
} >&2
[ "$mode" = run ] && [ -z "${CI-}" ]
