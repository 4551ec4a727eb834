package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	storage "github.com/storaged/storaged"
)

// image is a file with a file tree in it.
type image struct {
	path      string
	what      string // "an ext4 image"
	source    string // the tree
	sizeBytes int64  // a multiple of a block
	sum       [sha256.Size]byte
}

// makeImage puts the Go installation into an ext4 file system, or into a tar archive where mkfs.ext4 is missing.
func makeImage(ctx context.Context, dir string) (image, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return image{}, fmt.Errorf("find the Go installation: %w", err)
	}
	img := image{path: filepath.Join(dir, "image"), source: strings.TrimSpace(string(out))}
	if mkfs := findMkfs(); mkfs != "" {
		img.what = "an ext4 image"
		err = img.makeExt4(ctx, mkfs)
	} else {
		say("mkfs.ext4 is not here (apt-get install e2fsprogs): a tar archive will do")
		img.what = "a tar archive"
		err = img.makeTar()
	}
	if err != nil {
		return img, fmt.Errorf("make %s of %s: %w", img.what, img.source, err)
	}
	return img, img.finish()
}

// findMkfs looks for mkfs.ext4 also where only root's PATH looks.
func findMkfs() string {
	for _, name := range []string{"mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

func (img *image) makeExt4(ctx context.Context, mkfs string) error {
	var dataBytes, files int64
	err := filepath.WalkDir(img.source, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files++
		dataBytes += (info.Size() + storage.BlockSize - 1) / storage.BlockSize * storage.BlockSize
		return nil
	})
	if err != nil {
		return err
	}
	sizeMiB := (dataBytes+dataBytes/8)>>20 + 64 // room for directories, inodes and the journal
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-b", "4096", "-N", fmt.Sprint(files+files/8+1000), "-L", "demo",
		"-d", img.source, img.path, fmt.Sprintf("%dM", sizeMiB))
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	return nil
}

func (img *image) makeTar() (err error) {
	f, err := os.Create(img.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(img.source)); err != nil {
		return err
	}
	return w.Close()
}

// finish rounds the size up to whole blocks and takes the sum.
func (img *image) finish() (err error) {
	f, err := os.OpenFile(img.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	img.sizeBytes = (info.Size() + storage.BlockSize - 1) / storage.BlockSize * storage.BlockSize
	if err := f.Truncate(img.sizeBytes); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	img.sum = [sha256.Size]byte(h.Sum(nil))
	return nil
}
