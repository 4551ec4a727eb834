//go:build kube

package kube

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// image is one that the lab makes itself of static binaries: no registry is asked for any.
type image struct {
	file       string
	tags       []string
	entrypoint []string
	programs   map[string]string // path in the image: path here
	links      map[string]string
}

// images writes an archive of each image that the chart and the proofs name. The chart's have the names of its defaults.
func (l *lab) images(ctx context.Context) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	applets, err := run(ctx, busybox, "--list")
	if err != nil {
		return err
	}
	links := map[string]string{}
	for applet := range strings.FieldsSeq(applets) {
		if applet != "busybox" {
			links["bin/"+applet] = "/bin/busybox"
		}
	}
	storaged := map[string]string{"storaged": l.bin + "/storaged", "storagectl": l.bin + "/storagectl"}
	list := []image{
		{file: "pause", tags: []string{"registry.k8s.io/pause:3.10.1"}, entrypoint: []string{"/pause"}, programs: map[string]string{"pause": l.bin + "/pause"}},
		// Two tags of one program: an upgrade goes from one to the other.
		{file: "storaged", tags: []string{"docker.io/library/storaged:0.1.0", "docker.io/library/storaged:next"}, entrypoint: []string{"/storaged"}, programs: storaged},
		{file: "busybox", tags: []string{"docker.io/library/busybox:lab", "registry.k8s.io/e2e-test-images/busybox:1.37.0-1",
			// The suite runs nothing but a shell in these.
			"registry.k8s.io/e2e-test-images/nginx:1.14-4", "registry.k8s.io/e2e-test-images/nginx:1.15-4"},
			programs: map[string]string{"bin/busybox": busybox, "bin/journal": l.bin + "/journal"}, links: links},
		{file: "agnhost", tags: []string{"registry.k8s.io/e2e-test-images/agnhost:2.56"}, entrypoint: []string{"/agnhost"},
			programs: map[string]string{"bin/busybox": busybox, "agnhost": l.bin + "/agnhost"}, links: links},
	}
	tools, err := fileSystemTools(ctx)
	if err != nil {
		return err
	}
	maps.Copy(tools, storaged)
	tools["bin/busybox"] = busybox
	list = append(list, image{file: "tools", tags: []string{"docker.io/library/storaged:tools"}, entrypoint: []string{"/storaged"}, programs: tools,
		links: map[string]string{"bin/sh": "/bin/busybox"}})
	for _, name := range []string{"provisioner:v6.3.0", "attacher:v4.12.0", "resizer:v2.2.0"} {
		program, _, _ := strings.Cut("csi-"+name, ":")
		list = append(list, image{file: program, tags: []string{"registry.k8s.io/sig-storage/csi-" + name}, entrypoint: []string{"/" + program},
			programs: map[string]string{program: filepath.Join(l.bin, program)}})
	}
	for _, i := range list {
		if err := i.write(filepath.Join(l.dir, "img", i.file+".tar")); err != nil {
			return err
		}
	}
	return nil
}

// fileSystemTools are this machine's, with the libraries that they need: what the Dockerfile's target "tools" has.
func fileSystemTools(ctx context.Context) (map[string]string, error) {
	files := map[string]string{}
	for _, name := range []string{"blkid", "blockdev", "mkfs.ext4", "fsck.ext4", "resize2fs", "mkfs.xfs", "fsck.xfs", "xfs_repair", "xfs_growfs"} {
		path, err := exec.LookPath(name)
		if err != nil {
			return nil, err
		}
		files["bin/"+name] = path
		out, err := run(ctx, "ldd", path)
		if err != nil && !strings.Contains(err.Error(), "not a dynamic executable") { // a script
			return nil, err
		}
		for line := range strings.Lines(out) {
			for field := range strings.FieldsSeq(line) {
				if strings.HasPrefix(field, "/") {
					files[strings.TrimPrefix(field, "/")] = field
				}
			}
		}
	}
	return files, nil
}

// write writes the image as `docker load` and `ctr images import` read it: one layer.
func (i image) write(path string) error {
	var layer bytes.Buffer
	files := tar.NewWriter(&layer)
	var failed error
	for _, dir := range []string{"bin/", "tmp/"} {
		failed = errors.Join(failed, files.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o1777}))
	}
	for name, from := range i.programs {
		text, err := os.ReadFile(from)
		failed = errors.Join(failed, err, add(files, name, text, 0o755))
	}
	for name, to := range i.links {
		failed = errors.Join(failed, files.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}))
	}
	if err := errors.Join(failed, files.Close()); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
		"config": map[string]any{"Entrypoint": i.entrypoint, "Env": []string{"PATH=/bin"}, "WorkingDir": "/"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + sum(layer.Bytes())}}})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": sum(config) + ".json", "RepoTags": i.tags, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(out)
	return errors.Join(add(archive, sum(config)+".json", config, 0o644), add(archive, "layer.tar", layer.Bytes(), 0o644),
		add(archive, "manifest.json", manifest, 0o644), archive.Close(), out.Close())
}

func add(w *tar.Writer, name string, content []byte, mode int64) error {
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: mode})
	if err == nil {
		_, err = w.Write(content)
	}
	return err
}

func sum(p []byte) string {
	s := sha256.Sum256(p)
	return hex.EncodeToString(s[:])
}
