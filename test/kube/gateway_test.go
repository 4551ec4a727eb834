//go:build kube

package kube

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// gatewayOf returns the name of the gateway's pod on a host, and how often its container was started anew. It must be ready.
func (c *cluster) gatewayOf(node string) (name string, restarts int, err error) {
	out, err := c.kubectl(c.stop, "-n", "storaged", "get", "pods", "-l", "app.kubernetes.io/component=gateway", "--field-selector", "spec.nodeName="+node,
		"-o", `jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}{"\n"}{end}`)
	if err != nil {
		return "", 0, err
	}
	var ready string
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 1 {
		return "", 0, fmt.Errorf("gateways on %s:\n%s", node, out)
	}
	if _, err := fmt.Sscan(out, &name, &restarts, &ready); err != nil || ready != "true" {
		return "", 0, fmt.Errorf("the gateway on %s: %s (%w)", node, out, errors.Join(err, errors.New("not ready")))
	}
	return name, restarts, nil
}

// restartGateway: what FUSE devices hang on is not in the gateway's pod. The mounts of its host outlive a new pod, and a kill.
func (c *cluster) restartGateway(t *testing.T) {
	c.journal(t, "gateway", "storaged", "node1")
	c.journal(t, "gateway-xfs", "storaged-xfs", "node1")
	before, _, err := c.gatewayOf("node1")
	if err != nil {
		t.Fatal(err)
	}
	if out := c.follow(t, nil, "component=gateway", "-o wide"); !strings.Contains(out, before) {
		t.Errorf("%s is not among the gateways:\n%s", before, out)
	}
	c.under(t, "gateway", "the pod of its host's gateway is replaced", func() {
		c.follow(t, as("storaged-gateway-x1y2z", before), "delete pod storaged-gateway")
		eventually(t, 2*time.Minute, func() error {
			now, _, err := c.gatewayOf("node1")
			if err == nil && now == before {
				err = errors.New("the gateway's pod is the one before")
			}
			return err
		})
	})
	c.under(t, "gateway", "the process of its host's gateway is killed (SIGKILL)", func() {
		c.signal(t, syscall.SIGKILL, nil, "--host-id=node1")
		eventually(t, 2*time.Minute, func() error {
			_, restarts, err := c.gatewayOf("node1")
			if err == nil && restarts != 1 {
				err = fmt.Errorf("the gateway was started anew %d times", restarts)
			}
			return err
		})
	})
	// The devices are what they were: they are written, read past the page cache, and given back.
	c.under(t, "gateway-xfs", "nothing happens, after both", func() {})
	for _, name := range []string{"gateway", "gateway-xfs"} {
		c.exec(t, name, "dd if=/data/journal of=/tmp/journal bs=4096 count=100 iflag=direct 2>/dev/null; journal check /tmp/journal")
		if pod := get[struct {
			Status struct {
				ContainerStatuses []struct{ RestartCount int }
			}
		}](t, c, "pod", name); pod.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%s was started anew", name)
		}
		c.delete(t, "pod/"+name, "pvc/"+name)
	}
	c.noDevices(t, "node1")
}

// drain: a host is emptied and comes back; the storage nodes that are left serve meanwhile, and the budget lets no second one go.
func (c *cluster) drain(t *testing.T) {
	c.journal(t, "stays", "storaged", "node1")
	c.under(t, "stays", "another host is drained, and comes back", func() {
		c.follow(t, as("HOST", "node2"), "kubectl drain")
		if _, err := c.kubectl(c.stop, "drain", "node3", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=10s"); err == nil {
			t.Error("a second host was drained while a storage node is away")
		}
		c.progress(t, "stays")
		c.do(t, "uncordon", "node3")
		c.follow(t, as("HOST", "node2"), "kubectl uncordon")
		c.do(t, "-n", "storaged", "rollout", "status", "statefulset/storaged-node", "--timeout=5m")
	})
	c.delete(t, "pod/stays", "pvc/stays")
}
