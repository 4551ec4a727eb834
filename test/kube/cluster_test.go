//go:build kube

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	pluginDir = "/usr/lib/cni" // of Debian's containernetworking-plugins
	nodeCount = 3
	apiPort   = 6443
)

// lab is the cluster of Kubernetes, and where its files are.
type lab struct {
	dir      string // made anew each time
	bin      string // of what build.sh built
	repo     string
	machines []*machine
	loops    []string // that were there before, and the keepers' control groups
	keepers  []string
	api      *http.Client

	enter    sync.Once // inNetwork's thread
	enterErr error
	entered  chan error
	calls    chan func()
}

func (l *lab) nodes() []*machine { return l.machines[1:] }

func (l *lab) etc(name string) string { return filepath.Join(l.dir, "etc", name) }

// newLab brings a cluster up, and takes it down with the test, however that ends.
func newLab(t *testing.T, stop context.Context, bin, repo string) *lab {
	t.Helper()
	if err := needs(); err != nil {
		t.Fatal(err)
	}
	l := &lab{dir: filepath.Join(bin, "lab"), bin: filepath.Join(bin, "bin"), repo: repo, loops: loops(), keepers: keeperGroups()}
	for i := range nodeCount + 1 {
		l.machines = append(l.machines, &machine{lab: l, number: i, running: map[string]*process{}})
	}
	if _, err := os.Stat("/run/netns/" + l.machines[0].namespace()); err == nil {
		t.Fatalf("there is a lab already (/run/netns/%s): it runs, or was killed; then: ip netns del %s0 (to %d), and remove the cgroups %s*",
			l.machines[0].namespace(), networkPrefix, nodeCount, networkPrefix)
	}
	if err := os.RemoveAll(l.dir); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"etc", "log", "img"} {
		if err := os.MkdirAll(filepath.Join(l.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Errorf("the lab leaves something behind: %v", err)
		}
	})
	names := func(context.Context) error { return errors.Join(l.connect(), l.serveNames(t)) }
	for _, step := range []func(context.Context) error{l.images, l.network, l.certificates, names, l.controlPlane, l.startNodes} {
		if err := step(stop); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func (l *lab) close() error {
	var err error
	for i := range l.machines { // nodes first
		err = errors.Join(err, l.machines[len(l.machines)-1-i].close())
	}
	err = errors.Join(err, releaseLoops(l.loops), removeKeeperGroups(l.keepers))
	return errors.Join(err, leftovers(l.dir, l.loops))
}

// certificates makes the authority, and what each part shows of itself.
func (l *lab) certificates(ctx context.Context) error {
	ca, err := newAuthority(l.etc("ca.crt"))
	if err != nil {
		return err
	}
	server := []string{l.machines[0].address(), "127.0.0.1", "10.96.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local"}
	err = errors.Join(ca.issue(l.etc("apiserver"), "kube-apiserver", "", server...), ca.issue(l.etc("admin"), "admin", "system:masters"),
		ca.issue(l.etc("controllers"), "system:kube-controller-manager", ""), ca.issue(l.etc("scheduler"), "system:kube-scheduler", ""),
		ca.issue(l.etc("proxy"), "system:kube-proxy", ""), serviceAccountKeys(l.etc("sa")))
	users := []string{"admin", "controllers", "scheduler", "proxy"}
	for _, m := range l.nodes() {
		err = errors.Join(err, ca.issue(l.etc(m.name()), "system:node:"+m.name(), "system:nodes", m.address(), m.name()))
		users = append(users, m.name())
	}
	for _, user := range users {
		config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://%s:%d", certificate-authority: %s}}]
users: [{name: user, user: {client-certificate: %s, client-key: %s}}]
contexts: [{name: lab, context: {cluster: lab, user: user}}]
current-context: lab
`, l.machines[0].address(), apiPort, l.etc("ca.crt"), l.etc(user+".crt"), l.etc(user+".key"))
		err = errors.Join(err, os.WriteFile(l.etc(user+".kubeconfig"), []byte(config), 0o600))
	}
	return err
}

// controlPlane starts etcd, the API server, the controllers and the scheduler.
func (l *lab) controlPlane(ctx context.Context) error {
	m, issuer := l.machines[0], "https://kubernetes.default.svc.cluster.local"
	start := func(name, program string, args ...string) error {
		return m.start(name, m.in(append([]string{program}, args...)...)...)
	}
	err := start("etcd", "etcd", "--data-dir="+filepath.Join(l.dir, "etcd"), "--listen-client-urls=http://127.0.0.1:2379",
		"--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380", "--heartbeat-interval=500",
		"--election-timeout=5000", "--unsafe-no-fsync")
	err = errors.Join(err, start("apiserver", l.bin+"/kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--bind-address="+m.address(),
		"--advertise-address="+m.address(), fmt.Sprintf("--secure-port=%d", apiPort), "--service-cluster-ip-range=10.96.0.0/16",
		"--tls-cert-file="+l.etc("apiserver.crt"), "--tls-private-key-file="+l.etc("apiserver.key"), "--client-ca-file="+l.etc("ca.crt"),
		"--kubelet-client-certificate="+l.etc("admin.crt"), "--kubelet-client-key="+l.etc("admin.key"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer="+issuer, "--service-account-key-file="+l.etc("sa.pub"), "--service-account-signing-key-file="+l.etc("sa.key"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true", "--profiling=false"))
	if err != nil {
		return err
	}
	if err := l.await(ctx, 3*time.Minute, func() error {
		_, err := l.kubectl(ctx, "get", "--raw", "/readyz")
		return err
	}); err != nil {
		return err
	}
	return errors.Join(
		start("controllers", l.bin+"/kube-controller-manager", "--kubeconfig="+l.etc("controllers.kubeconfig"), "--root-ca-file="+l.etc("ca.crt"),
			"--service-account-private-key-file="+l.etc("sa.key"), "--use-service-account-credentials", "--leader-elect=false",
			"--bind-address=127.0.0.1", "--controllers=*,-nodeipam", "--profiling=false"),
		start("scheduler", l.bin+"/kube-scheduler", "--kubeconfig="+l.etc("scheduler.kubeconfig"), "--leader-elect=false",
			"--bind-address=127.0.0.1", "--profiling=false"))
}

// await calls f until it returns nil, the time is over, or a process of the lab has ended.
func (l *lab) await(ctx context.Context, within time.Duration, f func() error) error {
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return nil
		}
		for _, m := range l.machines {
			if dead := m.alive(); dead != nil {
				return dead
			}
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", within, err)
		}
		<-time.After(300 * time.Millisecond) // between two looks at a condition that has a deadline
	}
}

// kubectl runs kubectl as the administrator, in the control plane's network.
func (l *lab) kubectl(ctx context.Context, args ...string) (string, error) {
	command := append([]string{l.bin + "/kubectl", "--kubeconfig=" + l.etc("admin.kubeconfig")}, args...)
	return run(ctx, l.machines[0].in(command...)...)
}

// startNodes starts containerd, kube-proxy and the kubelet of each node in namespaces of its own, and waits for all.
func (l *lab) startNodes(ctx context.Context) error {
	for _, m := range l.nodes() {
		if err := errors.Join(m.cgroups(), m.configure(), m.boot()); err != nil {
			return err
		}
	}
	return l.await(ctx, 5*time.Minute, func() error {
		out, err := l.kubectl(ctx, "get", "nodes", "--no-headers")
		if ready := strings.Count(out, " Ready "); err == nil && ready != nodeCount {
			return fmt.Errorf("%d of %d nodes are ready:\n%s", ready, nodeCount, out)
		}
		return err
	})
}

func (m *machine) dir(name string) string {
	return filepath.Join(m.lab.dir, m.name(), name)
}

// configure writes the node's files.
func (m *machine) configure() error {
	files := map[string]string{
		"cni/10-lab.conflist": fmt.Sprintf(`{"cniVersion":"0.4.0","name":"lab","plugins":[
{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"hairpinMode":true,
 "ipam":{"type":"host-local","ranges":[[{"subnet":"%s"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
{"type":"portmap","capabilities":{"portMappings":true}}]}
`, m.podNetwork()),
		"containerd.toml": fmt.Sprintf(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10.1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "%s"
    conf_dir = "/etc/cni/net.d"
`, pluginDir),
		"kubelet.yaml": fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /%s
enforceNodeAllocatable: []
clusterDNS: [%s]
clusterDomain: cluster.local
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %s}}
authorization: {mode: Webhook}
tlsCertFile: %s
tlsPrivateKeyFile: %s
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
resolvConf: %s
evictionHard: {memory.available: 100Mi, nodefs.available: 256Mi, imagefs.available: 256Mi}
evictionPressureTransitionPeriod: 5s
imageGCHighThresholdPercent: 99
failSwapOn: false
`, m.namespace(), m.lab.machines[0].address(), m.lab.etc("ca.crt"), m.lab.etc(m.name()+".crt"), m.lab.etc(m.name()+".key"), m.dir("resolv.conf")),
		"resolv.conf": "nameserver " + m.lab.machines[0].address() + "\n",
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(m.dir(name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(m.dir(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// boot starts the node: node.sh is its first process, and when it is killed all others of the node go with it.
func (m *machine) boot() error {
	return m.start("node", m.in("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc",
		filepath.Join(m.lab.repo, "test/kube/node.sh"), m.name(), m.address(), filepath.Join(m.lab.dir, m.name()), m.lab.bin, m.lab.dir)...)
}
