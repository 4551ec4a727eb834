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
	"running":       {"nodes": map[string]any{"bootstrap": false}},
	"elsewhere":     {"nodes": map[string]any{"enabled": false}, "endpoints": []any{"10.0.0.1", "10.0.0.2:7000"}},
	"TLS":           {"tls": map[string]any{"nodeSecret": "nodes-tls", "hostSecret": "hosts-tls"}},
	"TLS elsewhere": {"tls": map[string]any{"hostSecret": "hosts-tls"}, "nodes": map[string]any{"enabled": false}, "endpoints": []any{"10.0.0.1"}},
	"gateway apart": {"gateway": map[string]any{"mode": "host"}},
	"tools inside": {"csi": map[string]any{"hostTools": false, "maxVolumes": 32},
		"storageClasses": []any{map[string]any{"name": "fast", "fsType": "xfs", "default": true, "mountOptions": []any{"noatime"},
			"parameters": map[string]any{"takeOver": "true"}}}},
	"places": {"imagePullSecrets": []any{map[string]any{"name": "s"}}, "nodes": map[string]any{"nodeSelector": map[string]any{"a": "b"},
		"extraArgs": []any{"--cache=1GiB"}}, "gateway": map[string]any{"nodeSelector": map[string]any{"a": "b"}, "extraArgs": []any{"--nbd-dead-timeout=2h"}},
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

// TestRefuses: values that cannot work are refused with a reason.
func TestRefuses(t *testing.T) {
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range map[string]map[string]any{
		"no cluster":       {"nodes": map[string]any{"enabled": false}},
		"two copies":       {"nodes": map[string]any{"replicas": 2}},
		"no nodes":         {"nodes": map[string]any{"count": 0}},
		"another gateway":  {"gateway": map[string]any{"mode": "sidecar"}},
		"half of TLS":      {"tls": map[string]any{"nodeSecret": "nodes-tls"}},
		"half of TLS too":  {"tls": map[string]any{"hostSecret": "hosts-tls"}},
		"another fs":       {"storageClasses": []any{map[string]any{"name": "x", "fsType": "btrfs"}}},
		"negative volumes": {"csi": map[string]any{"maxVolumes": -1}},
	} {
		if _, err := renderChart(c, values); err == nil {
			t.Errorf("%s: it was rendered", name)
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
