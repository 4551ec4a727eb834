//go:build kube

package kube

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	binFlag  = flag.String("bin", "", "`directory` of what build.sh built, without its bin; the lab's files go there too")
	repoFlag = flag.String("repo", "", "`directory` of storaged's sources")
	goOnFlag = flag.Bool("go-on", false, "go on after a proof that has failed")
	keepFlag = flag.Bool("keep", false, "keep the cluster after the proofs, until ctrl-C")
)

// cluster is Kubernetes with storaged on it.
type cluster struct {
	*lab
	guide *guide
	stop  context.Context // ends with ctrl-C
}

// TestKube installs the chart with its defaults on a new cluster, and runs the proofs one after the other.
func TestKube(t *testing.T) {
	if *binFlag == "" || *repoFlag == "" {
		t.Fatal("-bin and -repo say what to run (make kube does)")
	}
	stop, cancel := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	guide, err := readGuide(filepath.Join(*repoFlag, "docs/kubernetes.md"))
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{lab: newLab(t, stop, *binFlag, *repoFlag), guide: guide, stop: stop}
	for _, proof := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"the chart is installed with its defaults, and three nodes are up", c.install},
		{"a claim is served, and a new pod reads what the one before has written", c.outlive},
		{"a mounted volume grows", c.grow},
		{"raw volumes: one host, two hosts writing, one pod alone", c.raw},
		{"many read what one has written", c.readOnlyMany},
		{"a stateful set of three has a volume each", c.statefulSet},
		{"a pod is forced away, and goes on elsewhere", c.move},
		{"a storage node is killed under a pod that writes", c.killNode},
		{"the driver's pods are replaced under a pod that writes", c.restartDriver},
		{"a driver that hangs is started anew", c.hungDriver},
		{"a gateway is replaced, and killed, under pods that write", c.restartGateway},
		{"a host is drained", c.drain},
		{"an upgrade rolls one node at a time under a pod that writes", c.upgrade},
		{"an upgrade to an image that is not there stops at one node", c.wrongImage},
		{"a class of attributes limits a mounted volume", c.limits},
		{"a storage node loses its disk under a pod that writes", c.lostDisk},
		{"a host is cut off, and said to be gone", c.frozen},
		{"deleted claims free their volumes", c.free},
		{"Kubernetes' own suite of external storage", c.suite},
		{"all is removed", c.remove},
		{"the chart is installed with TLS", c.secure},
		{"zones are switched on under a pod that writes, and keep volumes", c.zones},
		{"zones are those that Kubernetes tells, and a host moves to another", c.zonesTold},
		{"nodes outside, a class of one's own, and gateways that leave their pods", c.outside},
		{"one node to try it out, and three later", c.small},
		{"all that docs/kubernetes.md says was done", c.followed},
	} {
		if stop.Err() != nil {
			t.Fatal("interrupted")
		}
		if !t.Run(proof.name, proof.run) {
			if c.tell(t); !*goOnFlag {
				break
			}
		}
	}
	if *keepFlag && stop.Err() == nil {
		fmt.Printf("the cluster stays until ctrl-C. In its network:\n  nsenter --net=/run/netns/%s %s/kubectl --kubeconfig %s get pods -A\n",
			c.machines[0].namespace(), c.bin, c.etc("admin.kubeconfig"))
		<-stop.Done()
	}
}

// tell logs what the cluster looks like when a proof has failed.
func (c *cluster) tell(t *testing.T) {
	for _, args := range [][]string{{"get", "pods,pvc,pv,volumeattachments", "-A", "-o", "wide"}, {"get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"-n", "storaged", "logs", "-l", "app.kubernetes.io/instance=storaged", "--all-containers", "--prefix", "--tail=15", "--max-log-requests=40"}} {
		out, err := c.kubectl(context.Background(), args...)
		lines := strings.Split(out, "\n")
		t.Logf("kubectl %s (%v):\n%s", strings.Join(args, " "), err, strings.Join(lines[max(0, len(lines)-150):], "\n"))
	}
}

// do runs kubectl, which must succeed.
func (c *cluster) do(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.kubectl(c.stop, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply makes the objects.
func (c *cluster) apply(t *testing.T, text string) {
	t.Helper()
	path := filepath.Join(c.dir, "objects.yaml") // kubectl takes commas in a path for several files
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.do(t, "apply", "-f", path)
}

func claim(name, class, mode, volumeMode, size string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec: {storageClassName: %s, accessModes: [%s], volumeMode: %s, resources: {requests: {storage: %s}}}
`, name, class, mode, volumeMode, size)
}

// pod is one with a claim at /data, or as the device /dev/volume, on a node or anywhere ("").
func pod(name, claim, node, command string, block bool) string {
	use := "volumeMounts: [{name: v, mountPath: /data}]"
	if block {
		use = "volumeDevices: [{name: v, devicePath: /dev/volume}]"
	}
	where := "{}"
	if node != "" {
		where = fmt.Sprintf("{kubernetes.io/hostname: %s}", node)
	}
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  nodeSelector: %s
  terminationGracePeriodSeconds: 2
  containers: [{name: c, image: busybox:lab, command: [/bin/sh, -c, %s], %s}]
  volumes: [{name: v, persistentVolumeClaim: {claimName: %s}}]
`, name, name, where, strconv.Quote(command), use, claim)
}

const idle = "trap 'exit 0' TERM; while :; do sleep 1; done"

func (c *cluster) ready(t *testing.T, pods ...string) {
	t.Helper()
	for _, p := range pods {
		c.do(t, "wait", "pod/"+p, "--for=condition=Ready", "--timeout=180s")
	}
}

func (c *cluster) exec(t *testing.T, pod, script string) string {
	t.Helper()
	return c.do(t, "exec", pod, "--", "/bin/sh", "-ec", script)
}

func (c *cluster) delete(t *testing.T, objects ...string) {
	t.Helper()
	c.do(t, append([]string{"delete", "--timeout=120s"}, objects...)...)
}

// journal makes a pod that appends records to a file and syncs each; the status says how many, and the longest pause.
func (c *cluster) journal(t *testing.T, name, class, node string) {
	t.Helper()
	c.apply(t, claim(name, class, "ReadWriteOnce", "Filesystem", "1Gi")+
		pod(name, name, node, "exec journal append a /data/journal /tmp/status", false))
	c.ready(t, name)
	c.progress(t, name)
}

// status returns what the journal of a pod says: records, and the longest pause between two.
func (c *cluster) status(name string) (records int, longest time.Duration, err error) {
	out, err := c.kubectl(c.stop, "exec", name, "--", "/bin/cat", "/tmp/status")
	if err != nil {
		return 0, 0, err
	}
	var milliseconds int64
	var failure string
	if _, err := fmt.Sscan(out, &records, &milliseconds, &failure); err != nil {
		return 0, 0, err
	}
	if failure != "-" {
		return 0, 0, fmt.Errorf("the application of %s failed: %s", name, out)
	}
	return records, time.Duration(milliseconds) * time.Millisecond, nil
}

// progress waits until the journal of a pod has grown by ten records.
func (c *cluster) progress(t *testing.T, name string) {
	t.Helper()
	var from int
	eventually(t, time.Minute, func() (err error) { from, _, err = c.status(name); return err })
	eventually(t, time.Minute, func() error {
		n, _, err := c.status(name)
		if err == nil && n < from+10 {
			err = fmt.Errorf("%s has synced %d records since", name, n-from)
		}
		return err
	})
}

// under runs f while the journal of a pod is written, says the longest pause, and checks what is in the file.
func (c *cluster) under(t *testing.T, name, what string, f func()) {
	t.Helper()
	c.exec(t, name, "rm /tmp/status") // begins a new measurement
	c.progress(t, name)
	f()
	c.progress(t, name)
	_, longest, err := c.status(name)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("    figure: longest pause of a pod that syncs each record, while %s: %.2f s\n", what, longest.Seconds())
	c.do(t, "exec", name, "--", "/bin/sh", "-ec", "cp /data/journal /tmp/journal; n=$(($(stat -c %s /tmp/journal) / 4096)); truncate -s $((n * 4096)) /tmp/journal; journal check /tmp/journal")
}

// get decodes an object of the cluster.
func get[T any](t *testing.T, c *cluster, args ...string) T {
	t.Helper()
	var into T
	if err := json.Unmarshal([]byte(c.do(t, append([]string{"get", "-o", "json"}, args...)...)), &into); err != nil {
		t.Fatal(err)
	}
	return into
}
