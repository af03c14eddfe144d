#include "x86/sys/segments.h"

#include "x86/sys/testing.h"

namespace anykvm::x86 {
namespace {

using namespace testing;

TEST(SegmentFromDescriptorTest, all_fields_come_from_their_bits) {
  Segment segment = segment_from_descriptor(
      0x1b, descriptor(0xa1b2c3d4, 0x54321, access_byte(11, 3), kBig | kPages | kAvl));
  EXPECT_EQ(segment.base, 0xa1b2c3d4u);
  EXPECT_EQ(segment.limit, 0x54321fffu);
  EXPECT_EQ(segment.selector, 0x1b);
  EXPECT_EQ(segment.type, 11);
  EXPECT_EQ(segment.dpl, 3);
  EXPECT_EQ(segment.present, 1);
  EXPECT_EQ(segment.s, 1);
  EXPECT_EQ(segment.db, 1);
  EXPECT_EQ(segment.l, 0);
  EXPECT_EQ(segment.g, 1);
  EXPECT_EQ(segment.avl, 1);
}

TEST(SegmentFromDescriptorTest, byte_granular_limit_is_taken_as_it_is) {
  EXPECT_EQ(segment_from_descriptor(8, descriptor(0, 0x54321, 0x93, 0)).limit, 0x54321u);
}

TEST(SegmentFromDescriptorTest, upper_half_of_system_descriptor_extends_the_base) {
  Segment tss = segment_from_descriptor(8, descriptor(0x80001000, 0x67, 0x89, 0), 0xffff8000);
  EXPECT_EQ(tss.base, 0xffff800080001000u);
}

class LoadSegmentTest : public SysTest {};

TEST_F(LoadSegmentTest, real_mode_sets_base_and_keeps_the_limit) {
  start_real();
  state.segments[kDs].limit = 0xffffffff;
  EXPECT_TRUE(succeeded(load_segment(cpu, kDs, 0x1234)));
  EXPECT_EQ(state.segments[kDs].base, 0x12340u);
  EXPECT_EQ(state.segments[kDs].limit, 0xffffffffu);
}

TEST_F(LoadSegmentTest, v86_mode_resets_the_limit) {
  start_v86();
  state.segments[kDs].limit = 0xffffffff;
  EXPECT_TRUE(succeeded(load_segment(cpu, kDs, 0x1234)));
  EXPECT_EQ(state.segments[kDs].base, 0x12340u);
  EXPECT_EQ(state.segments[kDs].limit, 0xffffu);
  EXPECT_EQ(state.segments[kDs].dpl, 3);
}

TEST_F(LoadSegmentTest, data_segment_is_marked_accessed_in_memory) {
  start_protected();
  set_gdt(kSpare, flat(2, 0, kBig));
  EXPECT_TRUE(succeeded(load_segment(cpu, kEs, kSpare)));
  EXPECT_EQ(gdt_access(kSpare), access_byte(3, 0));
  EXPECT_EQ(state.segments[kEs].type, 3);
}

TEST_F(LoadSegmentTest, null_selector_makes_data_segment_unusable) {
  start_protected();
  EXPECT_TRUE(succeeded(load_segment(cpu, kEs, 3)));
  EXPECT_TRUE(state.segments[kEs].unusable);
  EXPECT_EQ(state.segments[kEs].selector, 3);
}

TEST_F(LoadSegmentTest, null_ss_faults_in_protected_mode) {
  start_protected();
  EXPECT_TRUE(faulted(load_segment(cpu, kSs, 0), kVectorGp, 0));
}

TEST_F(LoadSegmentTest, null_ss_is_allowed_in_64_bit_mode_at_ring_0) {
  start_long();
  EXPECT_TRUE(succeeded(load_segment(cpu, kSs, 0)));
  EXPECT_TRUE(state.segments[kSs].unusable);
}

TEST_F(LoadSegmentTest, null_ss_faults_in_64_bit_mode_at_ring_3) {
  start_long(3);
  EXPECT_TRUE(faulted(load_segment(cpu, kSs, 3), kVectorGp, 0));
}

TEST_F(LoadSegmentTest, selector_outside_the_table_faults_with_itself) {
  start_protected();
  EXPECT_TRUE(faulted(load_segment(cpu, kDs, 0x103), kVectorGp, 0x100));
}

TEST_F(LoadSegmentTest, selector_in_unusable_ldt_faults_with_ti) {
  start_protected();
  EXPECT_TRUE(faulted(load_segment(cpu, kDs, 0x0c), kVectorGp, 0x0c));
}

TEST_F(LoadSegmentTest, ldt_descriptor_loads) {
  start_protected();
  state.ldtr = segment_from_descriptor(kLdtSelector, gdt_entry(kLdtSelector));
  write<u64>(kLdt + 8, descriptor(0x5000, 0xfff, access_byte(kTypeData, 0), kBig));
  EXPECT_TRUE(succeeded(load_segment(cpu, kDs, 0x0c)));
  EXPECT_EQ(state.segments[kDs].base, 0x5000u);
}

TEST_F(LoadSegmentTest, absent_data_segment_is_np_and_absent_stack_is_ss) {
  start_protected();
  EXPECT_TRUE(faulted(load_segment(cpu, kDs, kAbsentData), kVectorNp, kAbsentData));
  EXPECT_TRUE(faulted(load_segment(cpu, kSs, kAbsentData), kVectorSs, kAbsentData));
}

TEST_F(LoadSegmentTest, more_privileged_data_faults_and_changes_nothing) {
  start_protected(3);
  EXPECT_TRUE(faulted(load_segment(cpu, kDs, kData0 | 3), kVectorGp, kData0));
  EXPECT_EQ(state.segments[kDs].selector, kData3 | 3);
}

TEST_F(LoadSegmentTest, weak_rpl_faults) {
  start_protected();
  EXPECT_TRUE(faulted(load_segment(cpu, kDs, kData0 | 3), kVectorGp, kData0));
}

TEST_F(LoadSegmentTest, conforming_code_loads_at_any_privilege) {
  start_protected(3);
  EXPECT_TRUE(succeeded(load_segment(cpu, kDs, kConforming0 | 3)));
}

TEST_F(LoadSegmentTest, execute_only_code_and_system_descriptor_fault) {
  start_protected();
  set_gdt(kSpare, flat(kTypeExecuteOnly, 0, kBig));
  EXPECT_TRUE(faulted(load_segment(cpu, kDs, kSpare), kVectorGp, kSpare));
  EXPECT_TRUE(faulted(load_segment(cpu, kDs, kTssSelector), kVectorGp, kTssSelector));
}

TEST_F(LoadSegmentTest, ss_must_be_writable_and_of_the_same_privilege) {
  start_protected();
  set_gdt(kSpare, flat(kTypeReadOnly, 0, kBig));
  EXPECT_TRUE(faulted(load_segment(cpu, kSs, kSpare), kVectorGp, kSpare));
  EXPECT_TRUE(faulted(load_segment(cpu, kSs, kData3 | 3), kVectorGp, kData3));
  EXPECT_TRUE(faulted(load_segment(cpu, kSs, kData0 | 3), kVectorGp, kData0));
}

TEST_F(LoadSegmentTest, set_cpl_changes_cs_and_ss_too) {
  start_protected();
  set_cpl(cpu, 3);
  EXPECT_EQ(state.cpl, 3);
  EXPECT_EQ(state.segments[kCs].selector & 3, 3);
  EXPECT_EQ(state.segments[kSs].dpl, 3);
}

}  // namespace
}  // namespace anykvm::x86
