#!/usr/bin/env bash
# The first process of a node of the lab, in namespaces of mounts, processes and network of its own: containerd, kube-proxy and
# the kubelet. The machine's root directory is the node's, but for what must be its own.
#
#   node.sh NAME ADDRESS DIRECTORY BIN LAB
set -euo pipefail
name=$1 address=$2 dir=$3 bin=$4 lab=$5

own() { # own PATH: a directory of the node's at PATH
  mkdir -p "$dir/own$1" "$1"
  mount --bind "$dir/own$1" "$1"
}
for path in /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/log/pods /var/log/containers /var/lib/storaged-gateway \
  /mnt/disks/storaged; do own $path; done
mkdir -p /etc/cni/net.d
mount --bind "$dir/cni" /etc/cni/net.d
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/containerd /run/netns /run/lock
mkdir -p /dev/storaged
mount -t tmpfs -o mode=755 storaged /dev/storaged
mount --make-rshared /

containerd --config "$dir/containerd.toml" >>"$lab/log/$name-containerd.log" 2>&1 &
for _ in $(seq 300); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
for image in "$lab"/img/*.tar; do ctr -n k8s.io images import "$image" >>"$lab/log/$name-images.log" 2>&1; done
"$bin/kube-proxy" --kubeconfig "$lab/etc/proxy.kubeconfig" --proxy-mode iptables --cluster-cidr 10.244.0.0/16 --hostname-override "$name" \
  --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0 \
  --healthz-bind-address 127.0.0.1:10256 >>"$lab/log/$name-proxy.log" 2>&1 &
"$bin/kubelet" --config "$dir/kubelet.yaml" --kubeconfig "$lab/etc/$name.kubeconfig" --hostname-override "$name" --node-ip "$address" \
  --root-dir /var/lib/kubelet --v=2 >>"$lab/log/$name-kubelet.log" 2>&1 &
# The first of them that ends is the end of the node, which the test then says. Others' orphans are waited for meanwhile.
wait -n
