//go:build kube

package kube

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// disks makes the class and the volumes of the nodes' disks.
func (c *cluster) disks(t *testing.T) {
	t.Helper()
	text := ""
	for _, m := range c.nodes() {
		text += c.example(t, as("storaged-node1", "storaged-"+m.name(), "[node1]", "["+m.name()+"]"), "kubernetes.io/no-provisioner")
	}
	c.apply(t, text)
}

// rolledOut waits until everything that the release has started is there.
func (c *cluster) rolledOut(t *testing.T) {
	t.Helper()
	c.follow(t, nil, "rollout status statefulset/storaged-node")
	for _, set := range []string{"daemonset/storaged-csi-node", "deployment/storaged-csi-controller"} {
		c.do(t, "-n", "storaged", "rollout", "status", set, "--timeout=3m")
	}
}

// install does what docs/kubernetes.md says, with local volumes on three nodes and no values at all.
func (c *cluster) install(t *testing.T) {
	c.disks(t)
	c.follow(t, nil, "kubectl create namespace")
	c.follow(t, nil, "kubectl label namespace")
	begin := time.Now()
	c.follow(t, nil, "helm install storaged deploy/helm/storaged -n storaged")
	c.rolledOut(t)
	fmt.Printf("    figure: from helm install until all is ready: %.0f s\n", time.Since(begin).Seconds())
	c.follow(t, nil, "kubectl -n storaged exec storaged-node-0 -- /storagectl status")
	c.healthy(t)
}

// outlive: both file systems; the second pod is on another node.
func (c *cluster) outlive(t *testing.T) {
	for _, class := range []string{"storaged", "storaged-xfs"} {
		name := "outlive-" + class
		c.apply(t, claim(name, class, "ReadWriteOnce", "Filesystem", "1Gi")+pod(name, name, "node1", idle, false))
		c.ready(t, name)
		c.exec(t, name, "dd if=/dev/urandom of=/data/file bs=1M count=16 2>/dev/null; sha256sum /data/file >/data/sum; sync")
		c.delete(t, "pod/"+name)
		c.apply(t, pod(name, name, "node2", idle, false))
		c.ready(t, name)
		c.exec(t, name, "sha256sum -c /data/sum")
		c.delete(t, "pod/"+name, "pvc/"+name)
	}
}

// grow: xfs, whose growth needs no right that a machine may withhold; ext4 wants CAP_SYS_RESOURCE (test/lab proves it).
func (c *cluster) grow(t *testing.T) {
	c.apply(t, claim("grow", "storaged-xfs", "ReadWriteOnce", "Filesystem", "1Gi")+pod("grow", "grow", "", idle, false))
	c.ready(t, "grow")
	c.do(t, "patch", "pvc", "grow", "-p", `{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`)
	eventually(t, 2*time.Minute, func() error {
		var kib int
		out, err := c.kubectl(c.stop, "exec", "grow", "--", "/bin/sh", "-c", "df -k /data | tail -1 | awk '{print $2}'")
		if err == nil {
			_, err = fmt.Sscan(out, &kib)
		}
		if err == nil && kib < 1900<<10 {
			err = fmt.Errorf("the file system has %d KiB", kib)
		}
		return err
	})
	c.delete(t, "pod/grow", "pvc/grow")
}

// raw: block volumes in each way, and ReadWriteOncePod's second pod waits.
func (c *cluster) raw(t *testing.T) {
	c.rawAlone(t)
	c.apply(t, claim("shared", "storaged", "ReadWriteMany", "Block", "64Mi")+pod("shared-a", "shared", "node1", idle, true)+
		pod("shared-b", "shared", "node2", idle, true))
	c.ready(t, "shared-a", "shared-b")
	c.exec(t, "shared-a", "yes storaged | head -c 1048576 >/tmp/x; dd if=/tmp/x of=/dev/volume bs=1M oflag=direct conv=fsync 2>/dev/null")
	c.exec(t, "shared-b", "dd if=/dev/volume of=/tmp/x bs=1M count=1 iflag=direct 2>/dev/null; yes storaged | head -c 1048576 | cmp - /tmp/x")
	c.delete(t, "pod/shared-a", "pod/shared-b", "pvc/shared")

	c.apply(t, claim("alone", "storaged", "ReadWriteOncePod", "Filesystem", "64Mi")+pod("alone-a", "alone", "", idle, false))
	c.ready(t, "alone-a")
	c.apply(t, pod("alone-b", "alone", "", idle, false))
	eventually(t, time.Minute, func() error {
		out, err := c.kubectl(c.stop, "get", "events", "--field-selector", "involvedObject.name=alone-b", "-o", "jsonpath={.items[*].message}")
		if err == nil && !strings.Contains(out, "ReadWriteOncePod") {
			err = fmt.Errorf("nothing says why the second pod waits: %s", out)
		}
		return err
	})
	c.delete(t, "pod/alone-b", "pod/alone-a", "pvc/alone")
}

func (c *cluster) statefulSet(t *testing.T) {
	c.apply(t, `apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 3
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 2
      securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000}
      containers: [{name: c, image: "busybox:lab", command: [/bin/sh, -c, "hostname >>/data/who; `+idle+`"], volumeMounts: [{name: data, mountPath: /data}]}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {storageClassName: storaged, accessModes: [ReadWriteOnce], resources: {requests: {storage: 128Mi}}}
`)
	c.do(t, "rollout", "status", "statefulset/db", "--timeout=3m")
	c.do(t, "rollout", "restart", "statefulset/db")
	c.do(t, "rollout", "status", "statefulset/db", "--timeout=5m")
	for i := range 3 {
		name := fmt.Sprintf("db-%d", i)
		if who := c.exec(t, name, "cat /data/who"); who != name+"\n"+name+"\n" {
			t.Errorf("the volume of %s has been had by %q", name, who)
		}
	}
	c.delete(t, "statefulset/db", "pvc/data-db-0", "pvc/data-db-1", "pvc/data-db-2")
}

// move: a pod is deleted by force while it writes, and made on another node; the records go on where they were.
func (c *cluster) move(t *testing.T) {
	c.journal(t, "move", "storaged", "node1")
	before, _, err := c.status("move")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	c.do(t, "delete", "pod", "move", "--force", "--grace-period=0")
	c.apply(t, pod("move", "move", "node3", "exec journal append b /data/journal /tmp/status", false))
	c.ready(t, "move")
	fmt.Printf("    figure: from a forced deletion until the pod runs on another node: %.1f s\n", time.Since(begin).Seconds())
	c.progress(t, "move")
	if n, _, err := c.status("move"); err != nil || n < before {
		t.Errorf("%d records, and there were %d before (%v)", n, before, err)
	}
	c.under(t, "move", "nothing happens", func() {})
	c.delete(t, "pod/move", "pvc/move")
}

// killNode sends SIGKILL to the process of each storage node in turn; the kubelet starts it again.
func (c *cluster) killNode(t *testing.T) {
	c.journal(t, "kill", "storaged", "node2")
	c.under(t, "kill", "each storage node is killed (SIGKILL) in turn", func() {
		for i := range 3 {
			name := fmt.Sprintf("storaged-node-%d", i)
			c.signal(t, syscall.SIGKILL, nil, "--name="+name)
			eventually(t, 3*time.Minute, func() error {
				out, err := c.kubectl(c.stop, "-n", "storaged", "get", "pod", name, "-o", "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}")
				if err == nil && out != "1 true" {
					err = fmt.Errorf("restarts and readiness of %s: %s", name, out)
				}
				return err
			})
			c.do(t, "-n", "storaged", "rollout", "status", "statefulset/storaged-node", "--timeout=3m")
		}
	})
	c.delete(t, "pod/kill", "pvc/kill")
}

// node returns the machine of a node's name.
func (c *cluster) node(name string) *machine {
	return c.nodes()[slices.IndexFunc(c.nodes(), func(m *machine) bool { return m.name() == name })]
}

// signal sends a signal to the one process in the containers of a node, or of all (nil), that has this argument.
func (c *cluster) signal(t *testing.T, what syscall.Signal, m *machine, argument string) {
	t.Helper()
	if err := syscall.Kill(c.process(t, m, argument), what); err != nil {
		t.Fatal(err)
	}
}

// process returns the number of the one process in the containers of a node, or of all (nil), that has this argument.
func (c *cluster) process(t *testing.T, m *machine, argument string) int {
	t.Helper()
	nodes := c.nodes()
	if m != nil {
		nodes = []*machine{m}
	}
	found := c.find(nodes, argument)
	if len(found) != 1 {
		t.Fatalf("processes with the argument %s: %v", argument, found)
	}
	return found[0]
}

// find returns the numbers of the processes in the control groups of nodes that have this argument.
func (c *cluster) find(nodes []*machine, argument string) (found []int) {
	for _, m := range nodes {
		_ = filepath.WalkDir(m.cgroup(controllers()[0]), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return nil //nolint:nilerr // cgroups come and go
			}
			text, _ := os.ReadFile(path)
			for pid := range strings.FieldsSeq(string(text)) {
				arguments, _ := os.ReadFile("/proc/" + pid + "/cmdline")
				if slices.Contains(strings.Split(string(arguments), "\x00"), argument) {
					n, _ := strconv.Atoi(pid)
					found = append(found, n)
				}
			}
			return nil
		})
	}
	return found
}

func (c *cluster) restartDriver(t *testing.T) {
	c.journal(t, "driver", "storaged-xfs", "node2")
	c.under(t, "driver", "the driver's pods are replaced", func() {
		for _, set := range []string{"daemonset/storaged-csi-node", "deployment/storaged-csi-controller"} {
			c.do(t, "-n", "storaged", "rollout", "restart", set)
			c.do(t, "-n", "storaged", "rollout", "status", set, "--timeout=3m")
		}
	})
	c.delete(t, "pod/driver", "pvc/driver")
}

// upgrade watches that never two storage nodes are away at once.
func (c *cluster) upgrade(t *testing.T) {
	c.journal(t, "upgrade", "storaged", "node1")
	c.under(t, "upgrade", "helm upgrade rolls all storage nodes", func() {
		c.follow(t, as("0.2.0", "next"), "helm upgrade", "image.tag=")
		eventually(t, 6*time.Minute, func() error {
			set := get[struct {
				Status struct{ ReadyReplicas, UpdatedReplicas, AvailableReplicas int }
			}](t, c, "-n", "storaged", "statefulset", "storaged-node").Status
			if set.ReadyReplicas < 2 {
				t.Errorf("%d nodes are ready", set.ReadyReplicas)
			}
			if set.UpdatedReplicas < 3 || set.AvailableReplicas < 3 {
				return fmt.Errorf("%+v", set)
			}
			return nil
		})
	})
	c.delete(t, "pod/upgrade", "pvc/upgrade")
}

// wrongImage: one node stays down, volumes are served and made, and a rollback brings it back.
func (c *cluster) wrongImage(t *testing.T) {
	c.journal(t, "wrong", "storaged", "node2")
	c.under(t, "wrong", "an upgrade hangs at its first node, and is rolled back", func() {
		c.follow(t, as("0.2.0", "nowhere"), "helm upgrade", "image.tag=")
		eventually(t, 2*time.Minute, func() error {
			out, err := c.kubectl(c.stop, "-n", "storaged", "get", "pod", "storaged-node-2", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason}")
			if err == nil && !strings.Contains(out, "Image") {
				err = fmt.Errorf("the last node waits for %q", out)
			}
			return err
		})
		c.progress(t, "wrong")
		for _, name := range []string{"storaged-node-0", "storaged-node-1"} {
			if out := c.do(t, "-n", "storaged", "get", "pod", name, "-o", "jsonpath={.spec.containers[0].image}"); !strings.HasSuffix(out, ":next") {
				t.Errorf("%s runs %s", name, out)
			}
		}
		c.follow(t, nil, "helm rollback")
		c.do(t, "-n", "storaged", "rollout", "status", "statefulset/storaged-node", "--timeout=5m")
	})
	c.delete(t, "pod/wrong", "pvc/wrong")
}

// free: no volume is left in storaged when all claims are deleted, and nothing is attached.
func (c *cluster) free(t *testing.T) {
	eventually(t, 2*time.Minute, func() error {
		volumes, err := c.kubectl(c.stop, "-n", "storaged", "exec", "storaged-node-0", "--", "/storagectl", "volume", "list")
		if err == nil && strings.Contains(volumes, "pvc-") {
			err = fmt.Errorf("there are volumes left:\n%s", volumes)
		}
		attached, attachErr := c.kubectl(c.stop, "get", "volumeattachments", "-o", "name")
		if err = errors.Join(err, attachErr); err == nil && attached != "" {
			err = fmt.Errorf("there are attachments left: %s", attached)
		}
		return err
	})
}
