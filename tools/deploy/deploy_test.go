// Package deploy checks deploy/: the Helm chart is linted and rendered, what comes out is decoded strictly into the types
// of Kubernetes, and deploy/kubernetes holds it.
package deploy

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint/support"
	"helm.sh/helm/v3/pkg/releaseutil"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

const (
	chartDir  = "../../deploy/helm/storaged"
	manifests = "../../deploy/kubernetes/storaged.yaml"
)

var update = flag.Bool("update", false, "write "+manifests)

// TestLint: helm lint has nothing to say.
func TestLint(t *testing.T) {
	lint := action.NewLint()
	lint.Strict = true
	result := lint.Run([]string{chartDir}, nil)
	for _, m := range result.Messages {
		if m.Severity > support.InfoSev {
			t.Error(m)
		}
	}
	if len(result.Errors) > 0 {
		t.Error(result.Errors)
	}
}

// render returns the objects of the chart with these values over the defaults, in the order in which they are installed.
func render(t *testing.T, values map[string]any) []string {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := renderChart(c, values)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func renderChart(c *chart.Chart, values map[string]any) ([]string, error) {
	all, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: "storaged", Namespace: "storaged", IsInstall: true}, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Engine{Strict: true}.Render(c, all)
	if err != nil {
		return nil, err
	}
	delete(files, "storaged/templates/NOTES.txt")
	_, sorted, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	var objects []string
	for _, m := range sorted {
		objects = append(objects, strings.TrimSpace(m.Content))
	}
	return objects, err
}

// variants are the values that the chart is rendered with.
var variants = map[string]map[string]any{
	"default":       {},
	"one node":      {"nodes": map[string]any{"count": 1, "replicas": 1}},
	"many":          {"nodes": map[string]any{"count": 5, "replicas": 5, "priorityClassName": ""}, "metrics": map[string]any{"serviceMonitor": map[string]any{"enabled": true, "labels": map[string]any{"a": "b"}}}},
	"zones":         {"zones": map[string]any{"enabled": true}},
	"named zones":   {"zones": map[string]any{"enabled": true, "names": []any{"a", "b"}}, "gateway": map[string]any{"nodeSelector": map[string]any{"c": "d"}, "hostPrefix": "blue-"}},
	"elsewhere":     {"nodes": map[string]any{"enabled": false}, "endpoints": []any{"10.0.0.1", "10.0.0.2:7000"}},
	"TLS":           {"tls": map[string]any{"nodeSecret": "nodes-tls", "hostSecret": "hosts-tls"}},
	"TLS elsewhere": {"tls": map[string]any{"hostSecret": "hosts-tls"}, "nodes": map[string]any{"enabled": false}, "endpoints": []any{"10.0.0.1"}},
	"gateway apart": {"gateway": map[string]any{"mode": "host"}, "nodes": map[string]any{"enabled": false}, "endpoints": []any{"10.0.0.1"}},
	"tools inside": {"csi": map[string]any{"hostTools": false, "maxVolumes": 32},
		"storageClasses": []any{map[string]any{"name": "fast", "fsType": "xfs", "default": true, "mountOptions": []any{"noatime"},
			"parameters": map[string]any{"takeOver": "true"}}}},
	"places": {"imagePullSecrets": []any{map[string]any{"name": "s"}}, "nodes": map[string]any{"nodeSelector": map[string]any{"a": "b"},
		"extraArgs": []any{"--cache=1GiB"}}, "gateway": map[string]any{"nodeSelector": map[string]any{"a": "b"}, "keeperOnHost": false, "extraArgs": []any{"--nbd-dead-timeout=2h"}},
		"csi": map[string]any{"node": map[string]any{"nodeSelector": map[string]any{"a": "b"}}}},
}

// TestSchema: every object that the chart renders is one that Kubernetes knows, without a field that it does not.
func TestSchema(t *testing.T) {
	for name, values := range variants {
		t.Run(name, func(t *testing.T) {
			for _, object := range render(t, values) {
				if err := check(object); err != nil {
					t.Errorf("%v\n%s", err, object)
				}
			}
		})
	}
	if err := check("apiVersion: v1\nkind: Service\nspec: {portz: []}"); err == nil {
		t.Error("a field that there is not was taken")
	}
}

// check decodes an object strictly.
func check(object string) error {
	var head struct{ APIVersion, Kind string }
	if err := yaml.Unmarshal([]byte(object), &head); err != nil {
		return err
	}
	types := map[string]func() any{
		"v1 Service": func() any { return &corev1.Service{} }, "v1 ServiceAccount": func() any { return &corev1.ServiceAccount{} },
		"apps/v1 StatefulSet": func() any { return &appsv1.StatefulSet{} }, "apps/v1 DaemonSet": func() any { return &appsv1.DaemonSet{} },
		"apps/v1 Deployment": func() any { return &appsv1.Deployment{} }, "policy/v1 PodDisruptionBudget": func() any { return &policyv1.PodDisruptionBudget{} },
		"storage.k8s.io/v1 CSIDriver": func() any { return &storagev1.CSIDriver{} }, "storage.k8s.io/v1 StorageClass": func() any { return &storagev1.StorageClass{} },
		"monitoring.coreos.com/v1 ServiceMonitor":         func() any { return &map[string]any{} }, // its types are the operator's
		"rbac.authorization.k8s.io/v1 ClusterRole":        func() any { return &rbacv1.ClusterRole{} },
		"rbac.authorization.k8s.io/v1 ClusterRoleBinding": func() any { return &rbacv1.ClusterRoleBinding{} },
		"rbac.authorization.k8s.io/v1 Role":               func() any { return &rbacv1.Role{} },
		"rbac.authorization.k8s.io/v1 RoleBinding":        func() any { return &rbacv1.RoleBinding{} },
	}
	make, ok := types[head.APIVersion+" "+head.Kind]
	if !ok {
		return fmt.Errorf("%s %s is no kind that is expected here", head.APIVersion, head.Kind)
	}
	into := make()
	if err := yaml.UnmarshalStrict([]byte(object), into); err != nil {
		return err
	}
	return checkMounts(into)
}

// checkMounts: every mount of a container has its volume, and every volume is mounted.
func checkMounts(object any) error {
	var pod corev1.PodSpec
	var more []string
	switch o := object.(type) {
	case *appsv1.StatefulSet:
		pod = o.Spec.Template.Spec
		for _, c := range o.Spec.VolumeClaimTemplates {
			more = append(more, c.Name)
		}
	case *appsv1.DaemonSet:
		pod = o.Spec.Template.Spec
	case *appsv1.Deployment:
		pod = o.Spec.Template.Spec
	}
	for _, v := range pod.Volumes {
		more = append(more, v.Name)
	}
	mounted := map[string]bool{}
	for _, c := range pod.Containers {
		for _, m := range c.VolumeMounts {
			mounted[m.Name] = true
			if !slices.Contains(more, m.Name) {
				return fmt.Errorf("container %s mounts %s, which is no volume", c.Name, m.Name)
			}
		}
	}
	for _, v := range more {
		if !mounted[v] {
			return fmt.Errorf("volume %s is mounted nowhere", v)
		}
	}
	return nil
}

// find returns the one object of that kind whose name ends so, decoded into the type.
func find[T any](t *testing.T, objects []string, kind, suffix string) T {
	t.Helper()
	var found []T
	for _, object := range objects {
		var head struct {
			Kind     string
			Metadata struct{ Name string }
		}
		if err := yaml.Unmarshal([]byte(object), &head); err != nil {
			t.Fatal(err)
		}
		if head.Kind != kind || !strings.HasSuffix(head.Metadata.Name, suffix) {
			continue
		}
		var into T
		if err := yaml.UnmarshalStrict([]byte(object), &into); err != nil {
			t.Fatal(err)
		}
		found = append(found, into)
	}
	if len(found) != 1 {
		t.Fatalf("there are %d of kind %s with a name that ends in %q", len(found), kind, suffix)
	}
	return found[0]
}

func container(t *testing.T, pod corev1.PodSpec, name string) corev1.Container {
	t.Helper()
	i := slices.IndexFunc(pod.Containers, func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("there is no container %s", name)
	}
	return pod.Containers[i]
}

// TestNoZones: where hosts have no zones, the provisioner is not to ask for any: it makes no volume then.
func TestNoZones(t *testing.T) {
	controller := find[appsv1.Deployment](t, render(t, nil), "Deployment", "-csi-controller")
	args := container(t, controller.Spec.Template.Spec, "provisioner").Args
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--feature-gates=Topology=false") }) ||
		!slices.Contains(args, "--immediate-topology=false") {
		t.Errorf("the provisioner asks for zones: %q", args)
	}
}

// TestZones: with zones all parts of the driver know it, and where pods are not told their zone, each has gateways of its own.
func TestZones(t *testing.T) {
	zones := map[string]any{"zones": map[string]any{"enabled": true, "names": []any{"a", "b"}}}
	objects := render(t, zones)
	controller := find[appsv1.Deployment](t, objects, "Deployment", "-csi-controller").Spec.Template.Spec
	node := find[appsv1.DaemonSet](t, objects, "DaemonSet", "-csi-node").Spec.Template.Spec
	provisioner := container(t, controller, "provisioner").Args
	if !slices.ContainsFunc(provisioner, func(a string) bool { return strings.HasPrefix(a, "--feature-gates=Topology=true") }) {
		t.Errorf("the provisioner does not ask for zones: %q", provisioner)
	}
	for _, c := range []corev1.Container{container(t, controller, "csi"), container(t, node, "csi")} {
		if !slices.Contains(c.Args, "--topology") {
			t.Errorf("a part of the driver knows no zones: %q", c.Args)
		}
	}
	if args := container(t, node, "csi").Args; !slices.Contains(args, "--zones=a,b") {
		t.Errorf("a gateway from before may say another zone: %q", args)
	}
	told := render(t, map[string]any{"zones": map[string]any{"enabled": true}})
	driver := container(t, find[appsv1.DaemonSet](t, told, "DaemonSet", "-csi-node").Spec.Template.Spec, "csi")
	if !slices.Contains(driver.Args, "--zones=$(ZONE)") || len(driver.Env) != 1 || driver.Env[0].Name != "ZONE" {
		t.Errorf("a driver that Kubernetes tells its zone: %q, %v", driver.Args, driver.Env)
	}
	for _, zone := range []string{"a", "b"} {
		gateway := find[appsv1.DaemonSet](t, objects, "DaemonSet", "-gateway-"+zone).Spec
		if !slices.Contains(container(t, gateway.Template.Spec, "gateway").Args, "--zone="+zone) ||
			gateway.Template.Spec.NodeSelector["topology.kubernetes.io/zone"] != zone || gateway.Selector.MatchLabels["storaged.io/zone"] != zone {
			t.Errorf("the gateways of zone %s: %+v", zone, gateway)
		}
	}
}

// TestOneByOne: all nodes are of one StatefulSet, so that a rollout takes one after the other, and are told the same.
func TestOneByOne(t *testing.T) {
	set := find[appsv1.StatefulSet](t, render(t, nil), "StatefulSet", "").Spec
	update := set.UpdateStrategy
	if update.Type != appsv1.RollingUpdateStatefulSetStrategyType || update.RollingUpdate != nil && update.RollingUpdate.MaxUnavailable != nil {
		t.Errorf("nodes are updated so: %+v", update)
	}
	args := container(t, set.Template.Spec, "storaged").Args
	want := "--join=storaged-node-0.storaged-nodes.storaged.svc,storaged-node-1.storaged-nodes.storaged.svc,storaged-node-2.storaged-nodes.storaged.svc"
	if *set.Replicas != 3 || !slices.Contains(args, "--bootstrap") || !slices.Contains(args, want) {
		t.Errorf("%d nodes, told %q", *set.Replicas, args)
	}
	if probe := container(t, set.Template.Spec, "storaged").LivenessProbe; probe == nil || probe.HTTPGet.Path != "/livez" {
		t.Errorf("a node that hangs is told by %+v", probe)
	}
}

// TestNBDPort: nobody in Kubernetes needs the nodes' NBD port, and who reaches it reads and writes volumes. It is open to those who ask for
// it, and then no way past TLS.
func TestNBDPort(t *testing.T) {
	tls := map[string]any{"nodeSecret": "nodes-tls", "hostSecret": "hosts-tls"}
	for _, open := range []bool{false, true} {
		for _, secure := range []bool{false, true} {
			values := map[string]any{"nodes": map[string]any{"nbd": open}}
			if secure {
				values["tls"] = tls
			}
			objects := render(t, values)
			node := container(t, find[appsv1.StatefulSet](t, objects, "StatefulSet", "").Spec.Template.Spec, "storaged")
			if closed := slices.Contains(node.Args, "--listen-nbd=127.0.0.1:10809"); closed == open {
				t.Errorf("nbd=%t: %q", open, node.Args)
			}
			if asks := slices.Contains(node.Args, "--nbd-tls-client-ca=/tls/ca.crt") && slices.Contains(node.Args, "--nbd-tls-cert=/tls/tls.crt"); asks != (open && secure) {
				t.Errorf("nbd=%t, TLS %t: %q", open, secure, node.Args)
			}
			for _, service := range []string{"-nodes", "-api"} {
				ports := find[corev1.Service](t, objects, "Service", service).Spec.Ports
				if has := slices.ContainsFunc(ports, func(p corev1.ServicePort) bool { return p.Port == 10809 }); has != open {
					t.Errorf("nbd=%t: the service %s has the ports %v", open, service, ports)
				}
			}
		}
	}
}

// TestHostPrefix: hosts of several Kubernetes clusters can be told apart.
func TestHostPrefix(t *testing.T) {
	gateway := find[appsv1.DaemonSet](t, render(t, map[string]any{"gateway": map[string]any{"hostPrefix": "blue-"}}), "DaemonSet", "-gateway")
	if args := container(t, gateway.Spec.Template.Spec, "gateway").Args; !slices.Contains(args, "--host-id=blue-$(NODE_NAME)") {
		t.Errorf("a gateway calls itself %q", args)
	}
}

// TestPriority: nothing of less importance takes the place of what volumes hang on.
func TestPriority(t *testing.T) {
	objects := render(t, nil)
	var pods []corev1.PodSpec
	for _, object := range objects {
		var head struct{ Kind string }
		if err := yaml.Unmarshal([]byte(object), &head); err != nil {
			t.Fatal(err)
		}
		var with struct {
			Spec struct{ Template corev1.PodTemplateSpec }
		}
		if head.Kind == "StatefulSet" || head.Kind == "DaemonSet" || head.Kind == "Deployment" {
			if err := yaml.Unmarshal([]byte(object), &with); err != nil {
				t.Fatal(err)
			}
			pods = append(pods, with.Spec.Template.Spec)
		}
	}
	for _, pod := range pods {
		if !strings.HasPrefix(pod.PriorityClassName, "system-") {
			t.Errorf("the pods of %s have the priority class %q", pod.Containers[0].Name, pod.PriorityClassName)
		}
	}
	if len(pods) < 4 {
		t.Errorf("there are %d kinds of pods", len(pods))
	}
}

// TestKeeper: by default the end of a gateway's pod is not the end of its host's mounts, whatever its devices are.
func TestKeeper(t *testing.T) {
	for _, on := range []bool{true, false} {
		values := map[string]any{"gateway": map[string]any{"keeperOnHost": false}}
		if on {
			values = nil
		}
		pod := find[appsv1.DaemonSet](t, render(t, values), "DaemonSet", "-gateway").Spec.Template.Spec
		if flag := slices.Contains(container(t, pod, "gateway").Args, "--keeper-on-host"); flag != on || pod.HostPID != on {
			t.Errorf("keeperOnHost=%t: the flag %t, hostPID %t", on, flag, pod.HostPID)
		}
	}
}

// TestLiveness: every container of the driver's is started anew when it hangs.
func TestLiveness(t *testing.T) {
	objects := render(t, nil)
	node := find[appsv1.DaemonSet](t, objects, "DaemonSet", "-csi-node").Spec.Template.Spec
	controller := find[appsv1.Deployment](t, objects, "Deployment", "-csi-controller").Spec.Template.Spec
	for _, c := range append(node.Containers, controller.Containers...) {
		probe := c.LivenessProbe
		if probe == nil || probe.HTTPGet == nil {
			t.Errorf("the container %s has no liveness probe", c.Name)
			continue
		}
		if c.Name == "csi" && !slices.Contains(c.Args, "--listen-http=:7002") {
			t.Errorf("the driver does not serve its probe: %q", c.Args)
		}
		if !slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == probe.HTTPGet.Port.String() }) {
			t.Errorf("the probe of %s asks a port that there is not: %v", c.Name, probe.HTTPGet.Port)
		}
	}
}

// TestSidecars: the images are of the versions that test/kube builds and runs. Modules have the tags of their releases, so those
// exist; upstream gives the image of a release the same tag (its deploy/kubernetes and release notes).
func TestSidecars(t *testing.T) {
	text, err := os.ReadFile("../../test/kube/sidecars/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	built := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^\tgithub\.com/kubernetes-csi/external-(\w+)/v\d+ (v\S+)`).FindAllSubmatch(text, -1) {
		built[string(m[1])] = string(m[2])
	}
	pod := find[appsv1.Deployment](t, render(t, nil), "Deployment", "-csi-controller").Spec.Template.Spec
	for _, name := range []string{"provisioner", "attacher", "resizer"} {
		want := "registry.k8s.io/sig-storage/csi-" + name + ":" + built[name]
		if image := container(t, pod, name).Image; image != want || built[name] == "" {
			t.Errorf("%s is %s, and test/kube runs %s", name, image, want)
		}
	}
}

// TestControllerRights: the rights are those that the manifests of the sidecars ask for (external-provisioner 6.3,
// external-attacher 4.12, external-resizer 2.2), but for snapshots and secrets, which the driver does not use.
func TestControllerRights(t *testing.T) {
	objects := render(t, nil)
	have := map[string][]string{}
	rules := append(find[rbacv1.ClusterRole](t, objects, "ClusterRole", "").Rules, find[rbacv1.Role](t, objects, "Role", "").Rules...)
	for _, rule := range rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				have[group+"/"+resource] = append(have[group+"/"+resource], rule.Verbs...)
			}
		}
	}
	for resource, verbs := range map[string]string{
		"/persistentvolumes": "get list watch create patch delete", "/persistentvolumeclaims": "get list watch update",
		"/persistentvolumeclaims/status": "patch", "/events": "list watch create update patch", "/nodes": "get list watch", "/pods": "get list watch",
		"storage.k8s.io/storageclasses": "get list watch", "storage.k8s.io/csinodes": "get list watch",
		"storage.k8s.io/volumeattachments": "get list watch patch", "storage.k8s.io/volumeattachments/status": "patch",
		"storage.k8s.io/volumeattributesclasses": "get list watch", "coordination.k8s.io/leases": "get watch list delete update create",
	} {
		for _, verb := range strings.Fields(verbs) {
			if !slices.Contains(have[resource], verb) {
				t.Errorf("the controller may not %s %s", verb, resource)
			}
		}
	}
}

// TestRefuses: values that cannot work are refused, with the reason that is theirs: another one would hide that its own is gone.
func TestRefuses(t *testing.T) {
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		values map[string]any
		why    string
	}{
		"no cluster":              {map[string]any{"nodes": map[string]any{"enabled": false}}, "say in endpoints where the cluster is"},
		"two copies":              {map[string]any{"nodes": map[string]any{"replicas": 2}}, "'/nodes/replicas': value must be one of"},
		"no nodes":                {map[string]any{"nodes": map[string]any{"count": 0}}, "'/nodes/count': minimum"},
		"another gateway":         {map[string]any{"gateway": map[string]any{"mode": "sidecar"}}, "'/gateway/mode': value must be one of"},
		"half of TLS":             {map[string]any{"tls": map[string]any{"nodeSecret": "nodes-tls"}}, "go together"},
		"half of TLS too":         {map[string]any{"tls": map[string]any{"hostSecret": "hosts-tls"}}, "go together"},
		"another fs":              {map[string]any{"storageClasses": []any{map[string]any{"name": "x", "fsType": "btrfs"}}}, "'/storageClasses/0/fsType': value must be one of"},
		"hosts that know no pods": {map[string]any{"gateway": map[string]any{"mode": "host"}}, "hosts do not know the names of pods"},
		"a first node":            {map[string]any{"nodes": map[string]any{"bootstrap": true}}, "nodes.bootstrap is gone"},
		"a zone of spaces":        {map[string]any{"zones": map[string]any{"enabled": true, "names": []any{"a b"}}}, "'/zones/names/0': 'a b' does not match"},
		"a prefix of commas":      {map[string]any{"gateway": map[string]any{"hostPrefix": "a,b"}}, "'/gateway/hostPrefix': 'a,b' does not match"},
		"negative volumes":        {map[string]any{"csi": map[string]any{"maxVolumes": -1}}, "'/csi/maxVolumes': minimum"},
	} {
		if _, err := renderChart(c, tc.values); err == nil || !strings.Contains(err.Error(), tc.why) {
			t.Errorf("%s: %v, want %q in it", name, err, tc.why)
		}
	}
}

// inCluster is a cluster with some objects, for what templates look up.
type inCluster struct{ client dynamic.Interface }

// GetClientFor implements engine.ClientProvider.
func (c inCluster) GetClientFor(apiVersion, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	gvk := schema.FromAPIVersionAndKind(apiVersion, kind)
	resource, _ := meta.UnsafeGuessKindToResource(gvk)
	return c.client.Resource(resource), true, nil
}

// TestRefusesOlderRelease: a release whose nodes are in two StatefulSets is not upgraded to one with empty volumes.
func TestRefusesOlderRelease(t *testing.T) {
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := chartutil.ToRenderValues(c, nil, chartutil.ReleaseOptions{Name: "storaged", Namespace: "storaged", IsUpgrade: true}, chartutil.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	for name, refused := range map[string]bool{"storaged-first": true, "storaged-node": false} {
		set := &appsv1.StatefulSet{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "StatefulSet"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "storaged"}}
		_, err := engine.RenderWithClientProvider(c, all, inCluster{fake.NewSimpleDynamicClient(scheme.Scheme, set)})
		if refused != (err != nil && strings.Contains(err.Error(), "two StatefulSets")) {
			t.Errorf("with a StatefulSet %s: %v", name, err)
		}
	}
}

// TestManifests: the plain manifests are the chart's, with its defaults.
func TestManifests(t *testing.T) {
	var want bytes.Buffer
	want.WriteString("# The Helm chart in deploy/helm/storaged with its defaults, for `kubectl apply -f`. Written by `make deploy-check DEPLOY=-update`;\n" +
		"# do not edit.\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: storaged\n  labels:\n" +
		"    # The gateways and the CSI node service are privileged: they make block devices and mount.\n" +
		"    pod-security.kubernetes.io/enforce: privileged\n")
	for _, object := range render(t, nil) {
		fmt.Fprintf(&want, "---\n%s\n", object)
	}
	if *update {
		if err := os.WriteFile(manifests, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(manifests)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	have, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(errors.Join(err))
	}
	if !bytes.Equal(have, want.Bytes()) {
		t.Errorf("%s is not what the chart renders: run make deploy-check DEPLOY=-update", manifests)
	}
}
