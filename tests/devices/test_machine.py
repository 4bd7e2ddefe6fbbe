import pytest

from edgekit.devices.machine import instruction_set, parse_cpuinfo, this_machine

X86 = "processor\t: 0\nmodel name\t: Some CPU\ncpu MHz\t\t: 2596.1\nflags\t\t: fpu avx2 avx512f avx512_vnni\n"
PI_4 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n\nModel\t\t: Raspberry Pi 4 Model B\n"
PI_5 = (
    "processor\t: 0\nFeatures\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
)


@pytest.mark.parametrize(
    ("text", "isa"),
    [
        (X86, ("avx2", "avx512f", "avx512_vnni")),
        (PI_4, ("neon",)),
        (PI_5, ("neon", "fp16", "dotprod")),
        ("", ()),
    ],
)
def test_the_instruction_set_is_read_on_x86_and_arm(text, isa):
    assert instruction_set(parse_cpuinfo(text)) == isa


def test_only_the_first_processor_counts():
    assert parse_cpuinfo(X86 + X86.replace("Some", "Another"))["model name"] == "Some CPU"


def test_this_machine_has_cores_and_memory():
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28
    assert machine.arch
