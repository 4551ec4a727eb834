//go:build kube

package kube

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// lostDisk: a storage node whose disk is empty when it comes back is a new member; what was written is there, and the others may go
// afterwards.
func (c *cluster) lostDisk(t *testing.T) {
	host := c.do(t, "-n", "storaged", "get", "pod", "storaged-node-0", "-o", "jsonpath={.spec.nodeName}")
	c.journal(t, "lost", "storaged", "")
	c.exec(t, "lost", "dd if=/dev/urandom of=/data/file bs=1M count=32 2>/dev/null; sha256sum /data/file >/data/sum; sync")
	begin := time.Now()
	c.under(t, "lost", "a storage node is down, loses its disk, and comes back", func() {
		c.do(t, "cordon", host)
		c.do(t, "-n", "storaged", "delete", "pod", "storaged-node-0", "--timeout=120s")
		disk := filepath.Join(c.dir, host, "own/mnt/disks/storaged")
		left, err := os.ReadDir(disk)
		if err != nil || len(left) == 0 {
			t.Fatalf("the node's disk: %v, %v", left, err)
		}
		for _, entry := range left {
			if err := os.RemoveAll(filepath.Join(disk, entry.Name())); err != nil {
				t.Fatal(err)
			}
		}
		c.do(t, "uncordon", host)
		eventually(t, 2*time.Minute, func() error {
			out, err := c.kubectl(c.stop, "-n", "storaged", "logs", "storaged-node-0")
			if err == nil && !strings.Contains(out, "node remove storaged-node-0") {
				err = fmt.Errorf("the node with the empty disk does not say what to do:\n%s", out)
			}
			return err
		})
		eventually(t, 2*time.Minute, func() error {
			for line := range strings.Lines(c.follow(t, nil, "/storagectl node list")) {
				if strings.Contains(line, "storaged-node-0") && strings.Contains(line, "down") {
					return nil
				}
			}
			return errors.New("the lost node is not shown as down")
		})
		c.follow(t, nil, "node remove storaged-node-0")
		c.do(t, "-n", "storaged", "rollout", "status", "statefulset/storaged-node", "--timeout=5m")
		c.healthy(t)
		if out := c.follow(t, nil, "storaged-node-1 -- /storagectl status"); !strings.Contains(out, "8 of 8 with 3 replicas") {
			t.Errorf("status:\n%s", out)
		}
	})
	fmt.Printf("    figure: from the end of a storage node until its empty disk holds all copies: %.0f s\n", time.Since(begin).Seconds())
	c.exec(t, "lost", "dd if=/data/file iflag=direct bs=1M 2>/dev/null | sha256sum | cut -c-64 | grep -qx \"$(cut -c-64 /data/sum)\"")
	// The new copies are copies: each of the other nodes goes, and all is served.
	for _, name := range []string{"storaged-node-1", "storaged-node-2"} {
		c.do(t, "-n", "storaged", "delete", "pod", name, "--timeout=120s")
		c.do(t, "-n", "storaged", "rollout", "status", "statefulset/storaged-node", "--timeout=5m")
		c.progress(t, "lost")
	}
	c.delete(t, "pod/lost", "pvc/lost")
}

// healthy waits until all nodes of storaged are there, and all copies.
func (c *cluster) healthy(t *testing.T) {
	t.Helper()
	eventually(t, 3*time.Minute, func() error {
		out, err := c.kubectl(c.stop, "-n", "storaged", "exec", "storaged-node-1", "--", "/storagectl", "status", "--check")
		if err == nil && !strings.Contains(out, "3 of 3") {
			err = errors.New(out)
		}
		return err
	})
}

// frozen: the kubelet of a host does not answer any more, and what runs there runs on. When somebody says that the host is gone its pod
// goes on elsewhere, and the one that is left can write no more.
func (c *cluster) frozen(t *testing.T) {
	host := c.node("node3")
	c.apply(t, claim("frozen", "storaged", "ReadWriteOnce", "Filesystem", "256Mi")+`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: frozen}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: frozen}}
  template:
    metadata: {labels: {app: frozen}}
    spec:
      terminationGracePeriodSeconds: 2
      affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 100, preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node3]}]}}]}}
      containers:
        - {name: c, image: "busybox:lab", command: [/bin/sh, -c, "journal append a /data/journal /tmp/status; sleep 3600", frozen-on-its-host],
           volumeMounts: [{name: v, mountPath: /data}]}
      volumes: [{name: v, persistentVolumeClaim: {claimName: frozen}}]
`)
	c.do(t, "rollout", "status", "deployment/frozen", "--timeout=3m")
	old := c.do(t, "get", "pods", "-l", "app=frozen", "-o", "jsonpath={.items[*].metadata.name}")
	c.progress(t, old)
	shell := c.process(t, host, "frozen-on-its-host")
	status := func() string {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/root/tmp/status", shell))
		return strings.TrimSpace(string(text))
	}
	kubelet, err := host.kubelet()
	if err == nil {
		err = syscall.Kill(kubelet, syscall.SIGSTOP)
	}
	if err != nil {
		t.Fatal(err)
	}
	thaw := sync.OnceFunc(func() { _ = syscall.Kill(kubelet, syscall.SIGCONT) })
	defer thaw()
	c.do(t, "wait", "node/node3", "--for=condition=Ready=Unknown", "--timeout=180s")
	begin := time.Now()
	c.follow(t, as("HOST", "node3"), "kubectl taint node", "out-of-service=")
	c.elsewhere(t, old)
	fmt.Printf("    figure: from the out-of-service taint until the pod of a host that is cut off runs on another: %.0f s\n", time.Since(begin).Seconds())
	eventually(t, time.Minute, func() error {
		if said := status(); !strings.Contains(said, "input/output error") && !strings.Contains(said, "read-only file system") {
			return fmt.Errorf("what was left on the old host says %q", said)
		}
		return nil
	})
	thaw()
	c.follow(t, as("HOST", "node3"), "kubectl taint node", "out-of-service-")
	c.do(t, "wait", "node/node3", "--for=condition=Ready", "--timeout=180s")
	c.do(t, "-n", "storaged", "rollout", "status", "statefulset/storaged-node", "--timeout=5m")
	c.healthy(t)
	c.noDevices(t, "node3")
	c.delete(t, "deployment/frozen", "pvc/frozen")
}

// elsewhere waits until another pod than old has gone on with what that one wrote.
func (c *cluster) elsewhere(t *testing.T, old string) {
	t.Helper()
	eventually(t, 5*time.Minute, func() error {
		out, err := c.kubectl(c.stop, "get", "pods", "-l", "app=frozen", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.phase}{"\n"}{end}`)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if name, phase, _ := strings.Cut(strings.TrimSpace(line), " "); name != old && phase == "Running" {
				n, _, err := c.status(name)
				if err == nil && n == 0 {
					err = errors.New("the new pod has written nothing")
				}
				return err
			}
		}
		return fmt.Errorf("no other pod runs:\n%s", out)
	})
}

// noDevices waits until the gateway of a host has no volume of a claim any more.
func (c *cluster) noDevices(t *testing.T, node string) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		gateway, _, err := c.gatewayOf(node)
		if err != nil {
			return err
		}
		out, err := c.kubectl(c.stop, "-n", "storaged", "exec", gateway, "--", "/storagectl", "attachments")
		if err == nil && strings.Contains(out, "pvc-") {
			err = fmt.Errorf("the gateway has devices left:\n%s", out)
		}
		return err
	})
}
