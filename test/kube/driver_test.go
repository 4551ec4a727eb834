//go:build kube

package kube

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hungDriver: a driver that does not answer any more is started anew. A claim is served afterwards.
func (c *cluster) hungDriver(t *testing.T) {
	for _, part := range []struct{ component, argument string }{{"csi-node", "--mode=node"}, {"csi-controller", "--mode=controller"}} {
		pod := c.component(t, part.component, "node1")
		if pod == "" {
			pod = c.component(t, part.component, "")
		}
		node := c.do(t, "-n", "storaged", "get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")
		before := c.restarts(t, pod, "csi")
		begin := time.Now()
		c.signal(t, syscall.SIGSTOP, c.node(node), part.argument)
		eventually(t, 3*time.Minute, func() error {
			if n := c.restarts(t, pod, "csi"); n == before {
				return fmt.Errorf("the driver of %s hangs, and has not been started anew", pod)
			}
			return nil
		})
		fmt.Printf("    figure: from SIGSTOP of the driver (%s) until it is started anew: %.0f s\n", part.component, time.Since(begin).Seconds())
		c.do(t, "-n", "storaged", "wait", "pod/"+pod, "--for=condition=Ready", "--timeout=120s")
	}
	c.apply(t, claim("afterwards", "storaged", "ReadWriteOnce", "Filesystem", "64Mi")+pod("afterwards", "afterwards", "node1", idle, false))
	c.ready(t, "afterwards")
	c.delete(t, "pod/afterwards", "pvc/afterwards")
}

// component returns the name of a pod of the release, on a node or anywhere (""); empty: there is none.
func (c *cluster) component(t *testing.T, name, node string) string {
	t.Helper()
	where := "status.phase=Running"
	if node != "" {
		where += ",spec.nodeName=" + node
	}
	args := []string{"-n", "storaged", "get", "pods", "-l", "app.kubernetes.io/component=" + name, "--field-selector", where,
		"-o", `jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}`}
	first, _, _ := strings.Cut(c.do(t, args...), "\n")
	return first
}

// restarts returns how often a container was started anew.
func (c *cluster) restarts(t *testing.T, pod, container string) (n int) {
	t.Helper()
	out := c.do(t, "-n", "storaged", "get", "pod", pod, "-o", fmt.Sprintf(`jsonpath={.status.containerStatuses[?(@.name=="%s")].restartCount}`, container))
	if _, err := fmt.Sscan(out, &n); err != nil {
		t.Fatalf("restarts of %s in %s: %q", container, pod, out)
	}
	return n
}

// limits: a class of attributes slows a mounted volume down as soon as its claim has it, and not any more when it has another.
func (c *cluster) limits(t *testing.T) {
	c.follow(t, nil, "helm upgrade", "csi.volumeAttributesClass=true")
	c.do(t, "-n", "storaged", "rollout", "status", "deployment/storaged-csi-controller", "--timeout=3m")
	c.apply(t, c.example(t, as(`"500"`, `"50"`), "VolumeAttributesClass"))
	c.apply(t, c.example(t, as("20Gi", "1Gi"), "storage: 20Gi")+pod("data", "data", "", idle, false))
	c.ready(t, "data")
	c.exec(t, "data", "dd if=/dev/zero of=/data/file bs=1M count=4 conv=fsync 2>/dev/null")
	c.follow(t, nil, "patch pvc data", "volumeAttributesClassName")
	eventually(t, time.Minute, func() error {
		out, err := c.kubectl(c.stop, "get", "pvc", "data", "-o", "jsonpath={.status.currentVolumeAttributesClassName}")
		if err == nil && out != "silver" {
			err = fmt.Errorf("the claim has the class %q", out)
		}
		return err
	})
	// 400 requests at 50 a second, of which some are saved up: a bound that no speed of the machine changes.
	var took time.Duration
	eventually(t, time.Minute, func() error {
		begin := time.Now()
		if _, err := c.kubectl(c.stop, "exec", "data", "--", "/bin/dd", "if=/data/file", "of=/dev/null", "bs=4096", "count=400", "iflag=direct"); err != nil {
			return err
		}
		if took = time.Since(begin); took < 5*time.Second {
			return fmt.Errorf("400 reads took %v, at 50 a second", took)
		}
		return nil
	})
	fmt.Printf("    figure: 400 direct reads of a volume with max-iops 50: %.1f s\n", took.Seconds())
	c.delete(t, "pod/data", "pvc/data", "volumeattributesclass/silver")
}

// readOnlyMany: what a pod has written is read by pods on two hosts, by a volume that was made by hand.
func (c *cluster) readOnlyMany(t *testing.T) {
	c.apply(t, claim("library", "storaged", "ReadWriteOnce", "Filesystem", "64Mi")+pod("library", "library", "node3", idle, false))
	c.ready(t, "library")
	c.exec(t, "library", "dd if=/dev/urandom of=/data/file bs=1M count=8 2>/dev/null; sha256sum /data/file >/data/sum; sync")
	volume := c.do(t, "get", "pvc", "library", "-o", "jsonpath={.spec.volumeName}")
	handle := c.do(t, "get", "pv", volume, "-o", "jsonpath={.spec.csi.volumeHandle}")
	c.delete(t, "pod/library")
	c.apply(t, c.example(t, as("NAME", handle), "volumeHandle: NAME")+
		readers("reader-a", "node1")+readers("reader-b", "node2"))
	c.ready(t, "reader-a", "reader-b")
	for _, name := range []string{"reader-a", "reader-b"} {
		c.exec(t, name, "sha256sum -c /data/sum; ! touch /data/other 2>/dev/null")
	}
	c.delete(t, "pod/reader-a", "pod/reader-b", "pvc/shelf", "pv/shelf")
	// It is written again by one, when nobody reads any more.
	c.apply(t, pod("library", "library", "node1", idle, false))
	c.ready(t, "library")
	c.exec(t, "library", "sha256sum -c /data/sum; echo more >/data/more; sync")
	c.delete(t, "pod/library", "pvc/library")
}

func readers(name, node string) string { return pod(name, "shelf", node, idle, false) }

// alone: a raw volume of one host, and of another afterwards.
func (c *cluster) rawAlone(t *testing.T) {
	c.apply(t, claim("raw", "storaged", "ReadWriteOnce", "Block", "64Mi")+pod("raw", "raw", "node1", idle, true))
	c.ready(t, "raw")
	c.exec(t, "raw", "yes storaged | head -c 1048576 | dd of=/dev/volume bs=1M iflag=fullblock conv=fsync 2>/dev/null")
	c.delete(t, "pod/raw")
	c.apply(t, pod("raw", "raw", "node2", idle, true))
	c.ready(t, "raw")
	c.exec(t, "raw", "dd if=/dev/volume of=/tmp/x bs=1M count=1 2>/dev/null; yes storaged | head -c 1048576 | cmp - /tmp/x")
	c.delete(t, "pod/raw", "pvc/raw")
}
