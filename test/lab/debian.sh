#!/usr/bin/env bash
# Makes the disk of the lab's host with systemd and udev: a Debian of the release that this machine has, with the modules of the
# lab's kernel, and a service that runs the lab's jobs. Nothing of storaged is on it: it is installed as docs/attach.md says.
# It needs root (mmdebstrap), and takes a minute or two, once.
#
#   debian.sh DIRECTORY     makes DIRECTORY/debian.ext4, from what image.sh has made there; one that is there already is left alone
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
out=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
if [ "$out/debian.ext4" -nt "$here/debian.sh" ] && [ "$out/debian.ext4" -nt "$out/modules.tar" ]; then exit 0; fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
root=$tmp/root
packages=systemd,systemd-sysv,udev,dbus,e2fsprogs,xfsprogs,kmod,util-linux,mount,iproute2,nftables,lvm2,mdadm
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")

mmdebstrap --quiet --variant=minbase --include="$packages" --aptopt='Acquire::Languages "none"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  "$suite" "$root"
tar -C "$root/usr" --strip-components=0 -xf "$out/modules.tar" # lib is a link to usr/lib
depmod -b "$root" "$(ls "$root/usr/lib/modules")"
echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"
echo host-s >"$root/etc/hostname"
echo '127.0.0.1 localhost host-s' >"$root/etc/hosts"
: >"$root/etc/machine-id" # made at the first boot
cat >"$root/etc/systemd/network/eth0.network" <<'END'
[Match]
Name=eth0
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
IPv6AcceptRA=no
LinkLocalAddressing=no
END
cat >"$root/usr/local/sbin/lab-jobs" <<'END'
#!/bin/bash
# Runs the jobs that come over a virtio-serial port, as init.sh beside image.sh does.
port=
while [ -z "$port" ]; do
  for p in /sys/class/virtio-ports/*; do
    [ "$(cat "$p/name" 2>/dev/null)" = job ] && port=/dev/${p##*/}
  done
  sleep 0.1
done
exec 3<>"$port"
echo READY >&3
while read -r line <&3; do
  echo "$line" | base64 -d >/run/job
  (cd /root && exec bash /run/job) </dev/null >/run/job.out 2>&1 3<&-
  echo "DONE $? $(base64 -w0 /run/job.out)" >&3
done
END
chmod 755 "$root/usr/local/sbin/lab-jobs"
cat >"$root/etc/systemd/system/lab-jobs.service" <<'END'
[Unit]
Description=jobs of the lab
DefaultDependencies=no
After=systemd-remount-fs.service systemd-tmpfiles-setup.service
[Service]
ExecStart=/usr/local/sbin/lab-jobs
Environment=HOME=/root
KillMode=process
END
wants() { mkdir -p "$root/etc/systemd/system/$2.wants" && ln -sf "$1" "$root/etc/systemd/system/$2.wants/"; }
wants /etc/systemd/system/lab-jobs.service sysinit.target
wants /lib/systemd/system/systemd-networkd.service multi-user.target
wants /lib/systemd/system/systemd-networkd-wait-online.service network-online.target
# Nothing of these is in the proof, and the host is emulated.
for unit in e2scrub_reap.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer systemd-timesyncd.service \
  systemd-logind.service getty@tty1.service serial-getty@ttyS0.service systemd-user-sessions.service lvm2-monitor.service mdmonitor.service \
  modprobe@drm.service modprobe@efi_pstore.service modprobe@configfs.service systemd-pstore.service sys-kernel-debug.mount sys-kernel-tracing.mount \
  dev-hugepages.mount dev-mqueue.mount systemd-random-seed.service systemd-update-utmp.service systemd-update-utmp-runlevel.service; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/dev/*
rm -f "$out/debian.new"
mke2fs -q -t ext4 -d "$root" "$out/debian.new" 1G
mv "$out/debian.new" "$out/debian.ext4"
echo "lab: $suite, $(du -h "$out/debian.ext4" | cut -f1) of disk"
