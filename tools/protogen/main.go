// Command protogen compiles the module's .proto files and writes the Go code next to them.
//
// It does what "protoc --go_out=. --go-grpc_out=. --go_opt=paths=source_relative" does, without a protoc binary: the
// compiler is a Go library, and compiler and both plugins are pinned in tools/go.mod. The same sources therefore give
// the same files on every machine that has Go, which is what lets CI demand a clean diff after "make generate".
//
// Run it through tools/generate.sh, from anywhere in the module.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	root := flag.String("root", "..", "the module's root folder; generated files are written below it")
	dir := flag.String("proto", "proto", "the folder with the .proto files, relative to -root; also their import path")
	flag.Parse()
	if err := run(context.Background(), *root, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

// plugins are the commands that turn descriptors into code; go.mod pins them as tools.
var plugins = []struct{ command, options string }{
	{"protoc-gen-go", "paths=source_relative"},
	{"protoc-gen-go-grpc", "paths=source_relative,require_unimplemented_servers=true"},
}

func run(ctx context.Context, root, dir string) error {
	source := filepath.Join(root, dir)
	names, err := protoFiles(source)
	if err != nil {
		return err
	}
	files, err := compile(ctx, source, names)
	if err != nil {
		return err
	}
	for _, p := range plugins {
		request := &pluginpb.CodeGeneratorRequest{FileToGenerate: names, Parameter: proto.String(p.options), ProtoFile: files}
		response, err := generate(ctx, p.command, request)
		if err != nil {
			return err
		}
		for _, f := range response.GetFile() {
			if err := os.WriteFile(filepath.Join(source, filepath.FromSlash(f.GetName())), []byte(f.GetContent()), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// protoFiles returns the .proto files below dir as slash-separated paths relative to it, sorted.
func protoFiles(dir string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".proto" {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		names = append(names, filepath.ToSlash(rel))
		return err
	})
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("no .proto files in %s", dir)
	}
	slices.Sort(names)
	return names, err
}

// compile returns the descriptors of names and of everything they import, each after its imports.
func compile(ctx context.Context, dir string, names []string) ([]*descriptorpb.FileDescriptorProto, error) {
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		SourceInfoMode: protocompile.SourceInfoStandard, // comments
	}
	linked, err := compiler.Compile(ctx, names...)
	if err != nil {
		return nil, err
	}
	var files []*descriptorpb.FileDescriptorProto
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		files = append(files, protodesc.ToFileDescriptorProto(f))
	}
	for _, f := range linked {
		add(f)
	}
	return files, nil
}

// generate hands the request to a plugin, which speaks the protocol of protoc's plugins on standard input and output.
func generate(ctx context.Context, plugin string, request *pluginpb.CodeGeneratorRequest) (*pluginpb.CodeGeneratorResponse, error) {
	in, err := proto.MarshalOptions{Deterministic: true}.Marshal(request)
	if err != nil {
		return nil, err
	}
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "tool", plugin)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &problems
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", plugin, err, strings.TrimSpace(problems.String()))
	}
	response := &pluginpb.CodeGeneratorResponse{}
	if err := proto.Unmarshal(out.Bytes(), response); err != nil {
		return nil, fmt.Errorf("%s: its answer: %w", plugin, err)
	}
	if response.Error != nil {
		return nil, fmt.Errorf("%s: %w", plugin, errors.New(response.GetError()))
	}
	return response, nil
}
