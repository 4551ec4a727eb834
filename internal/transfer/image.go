package transfer

import (
	"bytes"
)

// ImageFormat is a format that is not a disk's bytes, and is known by bytes near its beginning.
type ImageFormat struct {
	Name   string
	offset int
	magic  string
	// Qemu is what qemu-img calls a disk image; Unpack is the program that unpacks what is compressed. One of the two is set.
	Qemu, Unpack string
}

// imageFormats are those that people import by mistake. No boot sector and no file system begins like one of them.
var imageFormats = []ImageFormat{
	{Name: "qcow2 image", magic: "QFI\xfb", Qemu: "qcow2"},
	{Name: "VMDK image", magic: "KDMV", Qemu: "vmdk"},
	{Name: "VMDK image", magic: "COWD", Qemu: "vmdk"},
	{Name: "VMDK descriptor", magic: "# Disk DescriptorFile", Qemu: "vmdk"},
	{Name: "VHDX image", magic: "vhdxfile", Qemu: "vhdx"},
	{Name: "VHD image", magic: "conectix", Qemu: "vpc"},
	{Name: "VDI image", offset: 64, magic: "\x7f\x10\xda\xbe", Qemu: "vdi"},
	{Name: "gzip file", magic: "\x1f\x8b\x08", Unpack: "gzip"},
	{Name: "xz file", magic: "\xfd7zXZ\x00", Unpack: "xz"},
	{Name: "zstd file", magic: "\x28\xb5\x2f\xfd", Unpack: "zstd"},
	{Name: "bzip2 file", magic: "BZh", Unpack: "bzip2"},
}

// headBytes is how much of the input's beginning tells the format.
const headBytes = 128

// ImageFormatOf finds the format of an input that begins with head.
func ImageFormatOf(head []byte) (ImageFormat, bool) {
	for _, f := range imageFormats {
		if len(head) > f.offset && bytes.HasPrefix(head[f.offset:], []byte(f.magic)) {
			return f, true
		}
	}
	return ImageFormat{}, false
}
