#!/usr/bin/env bash
# Makes what the lab's hosts boot: a Debian kernel as an uncompressed ELF, which QEMU starts at once, and an initramfs with its
# module nbd, file systems, their tools and crun. The kernel's package is downloaded and unpacked, never installed.
#
#   image.sh DIRECTORY      makes DIRECTORY/vmlinux, DIRECTORY/initramfs.cpio and DIRECTORY/modules.tar; what is there already is left alone
#
# LAB_KERNEL names another kernel package (linux-image-cloud-amd64).
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$1"
out=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
if [ "$out/initramfs.cpio" -nt "$here/image.sh" ] && [ "$out/initramfs.cpio" -nt "$here/init.sh" ]; then exit 0; fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
root=$tmp/root

# kernel leaves the kernel in $out/vmlinux and its modules in $tmp/kernel/lib/modules/$version.
kernel() {
  local meta=${LAB_KERNEL:-linux-image-cloud-amd64} package image start length unpack
  [ -n "$(apt-cache search --names-only "^$meta\$")" ] || [ "$(id -u)" != 0 ] || apt-get -qq update # a system without lists
  package=$(apt-cache depends "$meta" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -1)
  package=${package:-$meta}
  version=${package#linux-image-}
  (cd "$tmp" && apt-get -qq download "$package")
  dpkg-deb -x "$tmp"/linux-image-*.deb "$tmp/kernel"
  depmod -b "$tmp/kernel" "$version"
  # The header of a bzImage (Documentation/arch/x86/boot.rst): setup_sects at 0x1f1, payload_offset at 0x248 and
  # payload_length at 0x24c, whose last four bytes are the size of what is packed.
  image=$tmp/kernel/boot/vmlinuz-$version
  start=$((($(number 1 0x1f1) + 1) * 512 + $(number 4 0x248)))
  length=$(($(number 4 0x24c) - 4))
  case $(od -An -tx1 -j$start -N4 "$image" | tr -d ' ') in
  02214c18) unpack="lz4 -dc" ;;
  fd377a58) unpack="xz -dc" ;;
  28b52ffd) unpack="zstd -dc" ;;
  *) unpack="gzip -dc" ;;
  esac
  tail -c +$((start + 1)) "$image" | head -c $length | $unpack >"$tmp/vmlinux" || true # some packers mind what follows
  if readelf -n "$tmp/vmlinux" | grep -q Xen; then # the note by which QEMU starts an ELF
    strip -d -o "$out/vmlinux" "$tmp/vmlinux"
  else
    cp "$image" "$out/vmlinux" # slower, and as good
  fi
}

# number BYTES OFFSET reads a number of the kernel's header.
number() { od -An -tu"$1" -j$(($2)) -N"$1" "$image" | tr -d ' '; }

# program NAME... puts programs of this machine, with the libraries they need, into the root.
program() {
  local name file library
  for name in "$@"; do
    file=$(command -v "$name") || { echo "image.sh: $name is missing (test/deps.sh)" >&2; return 1; }
    cp -L "$file" "$root/sbin/$name"
    for library in $(ldd "$file" 2>/dev/null | grep -o '/[^ ]*'); do
      [ -e "$root$library" ] || install -D "$(readlink -f "$library")" "$root$library"
    done
  done
}

# modules NAME... puts modules, with those they need, into the root.
modules() {
  local name file
  for name in "$@"; do
    modprobe -d "$tmp/kernel" -S "$version" --show-depends "$name" 2>/dev/null | awk '/^insmod/ {print $2}' || true # built in
  done | sort -u | while read -r file; do
    install -D -m 644 "$file" "$root${file#"$tmp/kernel"}"
  done
  cp "$tmp/kernel/lib/modules/$version"/modules.{builtin,order} "$root/lib/modules/$version/"
  depmod -b "$root" "$version"
}

kernel
mkdir -p "$root"/{bin,sbin,dev,proc,sys,tmp,run,mnt,srv,etc,root,newroot,var/lib,containers/root/{bin,proc,dev,data,status}}
cp -L "$(command -v busybox)" "$root/bin/busybox"
for name in $(busybox --list); do [ "$name" = busybox ] || ln -s busybox "$root/bin/$name"; done
ln -sf /sbin/bash "$root/bin/sh"
ln -sf ../bin/busybox "$root/sbin/modprobe" # mount loads modules of file systems by it
cp -L "$(command -v busybox)" "$root/containers/root/bin/busybox"
for name in sh cat ls sync sha256sum dd rm mv sleep; do ln -s busybox "$root/containers/root/bin/$name"; done
program bash dd crun mount umount blockdev mkfs.ext4 e2fsck resize2fs mkfs.xfs xfs_growfs xfs_repair nbd-client
modules virtio_pci virtio_blk virtio_net virtio_console virtio_rng nbd ext4 xfs loop fuse overlay
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
ln -s /proc/self/mounts "$root/etc/mtab"
install -m 755 "$here/init.sh" "$root/init"
tar -C "$tmp/kernel" -cf "$out/modules.tar" lib/modules # for debian.sh
(cd "$root" && find . -print0 | sort -z | cpio --null -o -H newc --quiet -R 0:0) >"$out/initramfs.new"
mv "$out/initramfs.new" "$out/initramfs.cpio"
echo "lab: kernel $version, $(du -h "$out/initramfs.cpio" | cut -f1) of initramfs"
