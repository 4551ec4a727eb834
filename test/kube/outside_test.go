//go:build kube

package kube

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// zonesTold: the API server tells pods the zones of their nodes, as it does by itself from 1.35 on. Names are not needed any more: there is one
// set of gateways again, which goes on with the devices of those of zones, and nodes of storaged have zones.
func (c *cluster) zonesTold(t *testing.T) {
	c.journal(t, "before", "storaged", "node3")
	c.under(t, "before", "gateways of zones become those of one set", func() {
		if err := c.restartAPI("--feature-gates=PodTopologyLabelsAdmission=true"); err != nil {
			t.Fatal(err)
		}
		c.follow(t, nil, "helm upgrade", "zones.enabled=true", "zones.names=null")
		for _, set := range []string{"daemonset/storaged-csi-node", "deployment/storaged-csi-controller"} {
			c.do(t, "-n", "storaged", "rollout", "status", set, "--timeout=3m")
		}
		eventually(t, 3*time.Minute, func() error {
			name, _, err := c.gatewayOf("node3")
			if err == nil && !strings.HasPrefix(name, "storaged-gateway-") || strings.HasPrefix(name, "storaged-gateway-b-") {
				err = fmt.Errorf("the gateway of node3 is %s", name)
			}
			return err
		})
		c.do(t, "-n", "storaged", "rollout", "restart", "statefulset/storaged-node")
		c.do(t, "-n", "storaged", "rollout", "status", "statefulset/storaged-node", "--timeout=5m")
	})
	c.delete(t, "pod/before", "pvc/before")
	for i, m := range c.nodes() {
		zone := []string{"a", "b", "b"}[i]
		if label := c.do(t, "get", "node", m.name(), "-o", `jsonpath={.metadata.labels.topology\.csi\.storaged\.io/zone}`); label != zone {
			t.Errorf("%s is in the zone %s, and its driver says %q", m.name(), zone, label)
		}
	}
	if list := c.follow(t, as("/tls/tls.key status", "/tls/tls.key node list"), "exec storaged-node-0", "--tls-ca"); strings.Count(list, " b ") != 2 || strings.Count(list, " a ") != 1 {
		t.Errorf("nodes have the zones of their hosts, a, b and b:\n%s", list)
	}
	// A host that has moved.
	c.do(t, "label", "node", "node3", "topology.kubernetes.io/zone=a", "--overwrite")
	c.follow(t, as("HOST", "node3"), "kubectl label node", "zone-")
	c.follow(t, as("HOST", "node3"), "delete pod", "spec.nodeName")
	eventually(t, 3*time.Minute, func() error {
		label, err := c.kubectl(c.stop, "get", "node", "node3", "-o", `jsonpath={.metadata.labels.topology\.csi\.storaged\.io/zone}`)
		if err == nil && label != "a" {
			err = fmt.Errorf("the driver of node3, which is in zone a now, says %q", label)
		}
		return err
	})
}

// restartAPI starts the API server anew with more flags.
func (c *cluster) restartAPI(flags ...string) error {
	m := c.machines[0]
	command := append(m.running["apiserver"].cmd.Args, flags...)
	if err := errors.Join(m.kill("apiserver"), m.start("apiserver", command...)); err != nil {
		return err
	}
	return c.await(c.stop, 3*time.Minute, func() error {
		_, err := c.kubectl(c.stop, "get", "--raw", "/readyz")
		return err
	})
}

// What the proof calls what the document calls storage-1 and so on: the lab's machines have no names.
func (c *cluster) outsideNames() *strings.Replacer {
	return as("storage-1", c.machines[1].address(), "storage-2", c.machines[2].address(), "storage-3", c.machines[3].address())
}

// outside: the storage nodes are processes of the machines, the driver has another name, other directories and classes of its own. Then gateways
// move from pods to the hosts' service manager under a pod that writes.
func (c *cluster) outside(t *testing.T) {
	c.remove(t)
	c.startOutside(t)
	values := filepath.Join(c.dir, "values.yaml")
	text := c.outsideNames().Replace(strings.TrimPrefix(c.example(t, nil, "nodes: {enabled: false}"), "---\n"))
	text = strings.ReplaceAll(text, "csi: {", "csi: {driverName: blue.storaged.io, ")
	text = strings.ReplaceAll(text, "gateway: {", "gateway: {runDir: /run/storaged-blue, stateDir: /var/lib/storaged-gateway/blue, ")
	if err := os.WriteFile(values, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.follow(t, as("values.yaml", values), "helm install", "values.yaml")
	for _, set := range []string{"daemonset/storaged-csi-node", "deployment/storaged-csi-controller"} {
		c.do(t, "-n", "storaged", "rollout", "status", set, "--timeout=3m")
	}
	c.ownClass(t)
	c.wrongClass(t)
	c.under(t, "db", "gateways move from pods to the hosts' service manager", func() { c.hostGateways(t) })
	c.under(t, "db", "the host's gateway is killed (SIGKILL)", func() {
		m := c.node("node1")
		argument := "--config=" + c.gatewayConfig(m)
		before := c.process(t, m, argument)
		c.signal(t, syscall.SIGKILL, m, argument)
		eventually(t, time.Minute, func() error {
			if now := c.find([]*machine{m}, argument); len(now) != 1 || now[0] == before {
				return fmt.Errorf("the gateway has not been started anew: %v", now)
			}
			return nil
		})
	})
	c.delete(t, "pod/db")
	c.apply(t, pod("db", "db", "node2", "exec journal append b /data/journal /tmp/status", false))
	c.ready(t, "db")
	c.under(t, "db", "nothing happens, on another host", func() {})
	c.retained(t)
	if out := c.do(t, "get", "csinode", "node1", "-o", "jsonpath={.spec.drivers[*].allocatable.count}"); out != "64" {
		t.Errorf("a host may have %s volumes, want 64", out)
	}
}

// startOutside starts storage nodes that Kubernetes knows nothing of, one on each machine, and waits until they are one cluster.
func (c *cluster) startOutside(t *testing.T) {
	t.Helper()
	join := c.outsideNames().Replace("storage-1,storage-2,storage-3")
	for i, m := range c.nodes() {
		err := m.start("storaged", m.in(c.bin+"/storaged", "serve", "--data-dir="+filepath.Join(c.dir, m.name(), "outside"), fmt.Sprintf("--name=storage-%d", i+1),
			"--advertise="+m.address(), "--bootstrap", "--join="+join)...)
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 2*time.Minute, func() error {
		out, err := c.storagectl("status", "--check")
		if err == nil && !strings.Contains(out, "3 of 3") {
			err = errors.New(out)
		}
		return err
	})
}

// storagectl asks the nodes outside.
func (c *cluster) storagectl(args ...string) (string, error) {
	return run(c.stop, c.machines[0].in(append([]string{c.bin + "/storagectl", "--endpoint", c.machines[1].address()}, args...)...)...)
}

// ownClass: a claim that names no class gets the default one's, waits for its first pod, and is what the class says.
func (c *cluster) ownClass(t *testing.T) {
	t.Helper()
	c.apply(t, strings.Replace(claim("db", "", "ReadWriteOnce", "Filesystem", "1Gi"), "storageClassName: , ", "", 1))
	eventually(t, time.Minute, func() error {
		out, err := c.kubectl(c.stop, "get", "events", "--field-selector", "involvedObject.name=db,reason=WaitForFirstConsumer", "-o", "name")
		if err == nil && out == "" {
			err = errors.New("the claim does not wait for its first pod")
		}
		return err
	})
	c.apply(t, pod("db", "db", "node1", "exec journal append a /data/journal /tmp/status", false))
	c.ready(t, "db")
	c.progress(t, "db")
	if mounts := c.exec(t, "db", "grep ' /data ' /proc/mounts"); !strings.Contains(mounts, " xfs ") || !strings.Contains(mounts, "noatime") {
		t.Errorf("the class says xfs and noatime, and the pod has %s", mounts)
	}
	if out, err := c.storagectl("volume", "list"); err != nil || !strings.Contains(out, "blue-node1") {
		t.Errorf("the volume is open on blue-node1; %v:\n%s", err, out)
	}
}

// wrongClass: a class with a parameter that there is not says so at its claims.
func (c *cluster) wrongClass(t *testing.T) {
	t.Helper()
	c.apply(t, `---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: wrong}
provisioner: blue.storaged.io
parameters: {replicas: "2"}
`+claim("wrong", "wrong", "ReadWriteOnce", "Filesystem", "64Mi"))
	eventually(t, time.Minute, func() error {
		out := c.follow(t, as("describe pvc", "describe pvc wrong"), "kubectl describe pvc")
		if !strings.Contains(out, "ProvisioningFailed") || !strings.Contains(out, `parameter "replicas" is not known`) {
			return fmt.Errorf("the claim says:\n%s", out)
		}
		return nil
	})
	c.delete(t, "pvc/wrong", "storageclass/wrong")
}

// gatewayConfig is the path of the configuration of a machine's own gateway.
func (c *cluster) gatewayConfig(m *machine) string {
	return filepath.Join(m.dir("etc"), "gateway.yaml")
}

// hostGateways starts a gateway on each machine, as its service manager would, and takes those in pods away.
func (c *cluster) hostGateways(t *testing.T) {
	t.Helper()
	for _, m := range c.nodes() {
		config := c.gatewayConfig(m)
		if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
			t.Fatal(err)
		}
		c.follow(t, as("/etc/storaged/gateway.yaml", config, "blue-node1", "blue-"+m.name(),
			"storage-1,storage-2,storage-3", c.outsideNames().Replace("storage-1,storage-2,storage-3")), "printf", "gateway.yaml")
		if err := m.service("gateway", c.bin+"/storaged gateway --config="+config+
			" --state-dir=/var/lib/storaged-gateway/blue --socket=/run/storaged-blue/gateway.sock"); err != nil {
			t.Fatal(err)
		}
	}
	c.follow(t, nil, "helm upgrade", "gateway.mode=host")
	c.do(t, "-n", "storaged", "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=gateway", "--timeout=180s")
	for _, m := range c.nodes() {
		eventually(t, time.Minute, func() error {
			_, err := m.inside(c.stop, c.bin+"/storagectl", "attachments", "--socket", "/run/storaged-blue/gateway.sock")
			return err
		})
	}
}

// retained: what a class says is kept outlives its claim, until somebody deletes it.
func (c *cluster) retained(t *testing.T) {
	t.Helper()
	volume := c.do(t, "get", "pvc", "db", "-o", "jsonpath={.spec.volumeName}")
	c.delete(t, "pod/db", "pvc/db")
	c.do(t, "wait", "pv/"+volume, "--for=jsonpath={.status.phase}=Released", "--timeout=60s")
	eventually(t, time.Minute, func() error {
		attached, err := c.kubectl(c.stop, "get", "volumeattachments")
		if err == nil && strings.Contains(attached, volume) {
			err = fmt.Errorf("there are attachments left: %s", attached)
		}
		return err
	})
	c.delete(t, "pv/"+volume)
	if out, err := c.storagectl("volume", "list"); err != nil || !strings.Contains(out, volume) { // it has the same name there
		t.Errorf("the volume of a class that keeps them is gone (%v):\n%s", err, out)
	}
}

// small: a cluster of one node grows to three under a pod that writes. The tools of file systems are the image's, as on hosts that have none.
func (c *cluster) small(t *testing.T) {
	if out, err := c.shell("helm uninstall storaged -n storaged"); err != nil { // of the proof before; what is outside stays
		t.Fatal(err, out)
	}
	c.do(t, "-n", "storaged", "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/instance=storaged", "--timeout=180s")
	c.disks(t)
	c.follow(t, as("nodes.count=1", "nodes.count=1 --set csi.hostTools=false --set image.tag=tools"), "helm install", "nodes.count=1")
	c.rolledOut(t)
	c.apply(t, claim("tools", "storaged-xfs", "ReadWriteOnce", "Filesystem", "512Mi")+pod("tools", "tools", "node3", idle, false))
	c.ready(t, "tools")
	c.delete(t, "pod/tools", "pvc/tools")
	c.journal(t, "small", "storaged", "node2")
	c.under(t, "small", "a cluster of one node becomes one of three", func() {
		c.follow(t, nil, "helm upgrade", "nodes.count=3")
		c.do(t, "-n", "storaged", "rollout", "status", "statefulset/storaged-node", "--timeout=5m")
		c.healthy(t)
		if out := c.do(t, "-n", "storaged", "exec", "storaged-node-1", "--", "/storagectl", "status"); !strings.Contains(out, "with 3 replicas") {
			t.Errorf("status:\n%s", out)
		}
	})
	c.portsClosed(t, "small")
	c.delete(t, "pod/small", "pvc/small")
}

// portsClosed: a pod reaches the metrics of a node, and not its NBD port, by which it could read and write volumes.
func (c *cluster) portsClosed(t *testing.T, from string) {
	t.Helper()
	address := c.do(t, "-n", "storaged", "get", "pod", "storaged-node-0", "-o", "jsonpath={.status.podIP}")
	c.exec(t, from, "nc -w 5 "+address+" 7002 </dev/null")
	if out, err := c.kubectl(c.stop, "exec", from, "--", "/bin/sh", "-c", "nc -w 5 "+address+" 10809 </dev/null"); err == nil {
		t.Errorf("a pod reaches the NBD port of a node: %q", out)
	}
}
