#!/bin/sh
# The first process of a host of the lab: brings it up, then runs the jobs that come over a virtio-serial port, one after the
# other. A job is a line with a shell script in base64; the answer is a line "DONE <exit code> <its output in base64>".
export PATH=/sbin:/bin HOME=/root
if [ -n "$disk" ]; then # a parameter of the kernel: a host with a root of its own, and systemd on it (debian.sh)
  mount -t devtmpfs dev /dev
  mount -t proc proc /proc # modprobe looks there
  for module in virtio_pci virtio_blk ext4; do modprobe "$module"; done
  mount -t ext4 "$disk" /newroot || exit 1
  umount /proc
  mount --move /dev /newroot/dev
  exec /bin/busybox switch_root /newroot /lib/systemd/systemd
fi
if [ -z "$rebased" ]; then # a root that is a mount of its own, or container runtimes cannot pivot_root(2)
  /bin/busybox mount --bind / /newroot
  cd /newroot || exit 1
  /bin/busybox mount --move . /
  rebased=1 exec /bin/busybox chroot . /init
fi
unset rebased
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for module in virtio_pci virtio_blk virtio_net virtio_console virtio_rng fuse loop; do modprobe "$module"; done
modprobe nbd nbds_max=8
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
hostname "${hostname:-host}" # a parameter of the kernel
for port in /sys/class/virtio-ports/*; do
  [ "$(cat "$port/name")" = job ] && exec 3<>"/dev/${port##*/}"
done
echo READY >&3
while read -r line <&3; do
  echo "$line" | base64 -d >/run/job
  (cd /root && exec sh /run/job) </dev/null >/run/job.out 2>&1 3<&-
  echo "DONE $? $(base64 /run/job.out | tr -d '\n')" >&3
done
