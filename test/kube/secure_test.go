//go:build kube

package kube

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// remove takes the release away as the document says, and leaves disks as new: what follows is another installation.
func (c *cluster) remove(t *testing.T) {
	eventually(t, 2*time.Minute, func() error {
		if out := c.follow(t, nil, "get volumeattachments"); strings.Contains(out, "storaged") {
			return fmt.Errorf("there are attachments left:\n%s", out)
		}
		return nil
	})
	c.follow(t, nil, "helm uninstall")
	c.do(t, "-n", "storaged", "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/instance=storaged", "--timeout=180s")
	c.follow(t, nil, "delete pvc", "app.kubernetes.io/component=node")
	for _, m := range c.nodes() {
		c.follow(t, as("storaged-node1", "storaged-"+m.name()), "kubectl delete pv ")
		disk := filepath.Join(c.dir, m.name(), "own/mnt/disks/storaged")
		left, err := os.ReadDir(disk)
		if err != nil || len(left) == 0 {
			t.Errorf("the disk of %s after all was removed: %v, %v; its data is somebody's to delete", m.name(), left, err)
		}
		for _, entry := range left {
			if err := os.RemoveAll(filepath.Join(disk, entry.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	out := c.do(t, "get", "csidrivers,storageclasses,clusterroles,clusterrolebindings,daemonsets,statefulsets,deployments", "-A",
		"-l", "app.kubernetes.io/instance=storaged", "-o", "name")
	if out != "" {
		t.Errorf("helm uninstall leaves %s", out)
	}
}

// secure installs the chart with TLS.
func (c *cluster) secure(t *testing.T) {
	ca, err := newAuthority(c.etc("storage-ca.crt"))
	if err == nil {
		err = errors.Join(ca.issue(c.etc("nodes-tls"), "storaged nodes", "", "*.storaged-nodes.storaged.svc", "storaged-api.storaged.svc"),
			ca.issueUnit(c.etc("hosts-tls"), "storaged hosts", "storaged-gateway"))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nodes-tls", "hosts-tls"} { // as cert-manager makes them
		c.do(t, "-n", "storaged", "create", "secret", "generic", name, "--type=kubernetes.io/tls", "--from-file=tls.crt="+c.etc(name+".crt"),
			"--from-file=tls.key="+c.etc(name+".key"), "--from-file=ca.crt="+c.etc("storage-ca.crt"))
	}
	c.disks(t)
	notes := c.follow(t, nil, "helm install", "tls.nodeSecret=nodes-tls")
	c.rolledOut(t)
	status := ""
	for line := range strings.Lines(notes) { // as it is printed
		if strings.Contains(line, "/storagectl") {
			status = strings.TrimSpace(line)
		}
	}
	var out string
	eventually(t, 2*time.Minute, func() (err error) {
		out, err = c.shell(status + " --check")
		return err
	})
	if !strings.Contains(out, "3 of 3") {
		t.Errorf("%s says:\n%s", status, out)
	}
	c.follow(t, nil, "exec storaged-node-0", "--tls-ca")
	if out, err := c.shell("kubectl -n storaged exec storaged-node-0 -- /storagectl status"); err == nil {
		t.Errorf("without a certificate the API answers:\n%s", out)
	}
	c.journal(t, "secret", "storaged", "node2")
	c.under(t, "secret", "each storage node is deleted, with TLS", func() {
		for i := range 3 {
			c.do(t, "-n", "storaged", "delete", "pod", fmt.Sprintf("storaged-node-%d", i), "--timeout=120s")
			c.do(t, "-n", "storaged", "rollout", "status", "statefulset/storaged-node", "--timeout=5m")
		}
	})
	c.delete(t, "pod/secret", "pvc/secret")
}

// zones: a class that keeps its volumes to a zone has its pods run there; those of others run everywhere, and what was there before
// goes on while gateways change from one set of pods to one for each zone.
func (c *cluster) zones(t *testing.T) {
	for i, m := range c.nodes() {
		c.do(t, "label", "node", m.name(), "topology.kubernetes.io/zone="+[]string{"a", "b", "b"}[i])
	}
	c.journal(t, "before", "storaged", "node3")
	c.under(t, "before", "zones are switched on, and gateways become those of zones", func() {
		c.follow(t, nil, "helm upgrade", "zones.names={a,b}")
		for _, set := range []string{"daemonset/storaged-csi-node", "deployment/storaged-csi-controller"} {
			c.do(t, "-n", "storaged", "rollout", "status", set, "--timeout=3m")
		}
		eventually(t, 3*time.Minute, func() error {
			_, _, err := c.gatewayOf("node3")
			return err
		})
	})
	c.delete(t, "pod/before", "pvc/before")
	c.apply(t, c.example(t, nil, "kind: StorageClass", "accessibleFrom"))
	c.apply(t, claim("kept", "storaged-zone-a", "ReadWriteOnce", "Filesystem", "64Mi")+pod("kept", "kept", "", idle, false))
	c.ready(t, "kept")
	if node := c.do(t, "get", "pod", "kept", "-o", "jsonpath={.spec.nodeName}"); node != "node1" {
		t.Errorf("a volume of zone a, which is node1, is used on %s", node)
	}
	volume := c.do(t, "get", "pvc", "kept", "-o", "jsonpath={.spec.volumeName}")
	if where := c.do(t, "get", "pv", volume, "-o", "jsonpath={.spec.nodeAffinity}"); !strings.Contains(where, `"topology.csi.storaged.io/zone"`) || !strings.Contains(where, `"a"`) {
		t.Errorf("the volume is bound to %s", where)
	}
	c.delete(t, "pod/kept")
	c.apply(t, pod("kept", "kept", "node2", idle, false))
	eventually(t, time.Minute, func() error {
		out, err := c.kubectl(c.stop, "get", "events", "--field-selector", "involvedObject.name=kept,reason=FailedScheduling", "-o", "jsonpath={.items[*].message}")
		if err == nil && !strings.Contains(out, "PersistentVolume's node affinity") {
			err = fmt.Errorf("nothing says why the pod waits: %s", out)
		}
		return err
	})
	c.delete(t, "pod/kept", "pvc/kept", "storageclass/storaged-zone-a")
	for _, node := range []string{"node1", "node3"} {
		c.apply(t, claim("free", "storaged", "ReadWriteOnce", "Filesystem", "64Mi")+pod("free", "free", node, idle, false))
		c.ready(t, "free")
		c.delete(t, "pod/free", "pvc/free")
	}
}
